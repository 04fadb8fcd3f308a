import java.io.FileInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.net.Authenticator;
import java.net.HttpURLConnection;
import java.net.PasswordAuthentication;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.security.KeyStore;
import java.security.cert.CertificateFactory;
import java.time.Duration;
import javax.net.ssl.HttpsURLConnection;
import javax.net.ssl.SSLContext;
import javax.net.ssl.TrustManagerFactory;

/**
 * One call by Java: {@code Client httpclient|urlconnection URL CA [USER TOKEN]}. The proxy comes
 * from the system properties of JAVA_TOOL_OPTIONS, the credential from an Authenticator.
 */
public class Client {
    public static void main(String[] arguments) throws Exception {
        String url = arguments[1];
        SSLContext trust = trust(arguments[2]);
        Authenticator credential = null;
        if (arguments.length > 4) {
            credential = new Authenticator() {
                @Override
                protected PasswordAuthentication getPasswordAuthentication() {
                    // Only the proxy may have it.
                    return getRequestorType() == RequestorType.PROXY
                            ? new PasswordAuthentication(arguments[3], arguments[4].toCharArray())
                            : null;
                }
            };
        }
        try {
            if (arguments[0].equals("httpclient")) {
                byHttpClient(url, trust, credential);
            } else {
                byUrlConnection(url, trust, credential);
            }
        } catch (IOException error) {
            for (Throwable at = error; at != null; at = at.getCause()) {
                System.out.println(at);
            }
            System.exit(1);
        }
    }

    private static void byHttpClient(String url, SSLContext trust, Authenticator credential) throws Exception {
        HttpClient.Builder builder = HttpClient.newBuilder().sslContext(trust);
        if (credential != null) {
            builder.authenticator(credential);
        }
        HttpRequest request = HttpRequest.newBuilder(URI.create(url)).timeout(Duration.ofSeconds(30)).build();
        HttpResponse<String> response = builder.build().send(request, HttpResponse.BodyHandlers.ofString());
        System.out.println(response.statusCode() + " " + response.version() + " " + response.body());
    }

    private static void byUrlConnection(String url, SSLContext trust, Authenticator credential) throws IOException {
        HttpURLConnection connection = (HttpURLConnection) URI.create(url).toURL().openConnection();
        if (connection instanceof HttpsURLConnection encrypted) {
            encrypted.setSSLSocketFactory(trust.getSocketFactory());
        }
        if (credential != null) {
            connection.setAuthenticator(credential);
        }
        int status = connection.getResponseCode();
        InputStream body = status < 400 ? connection.getInputStream() : connection.getErrorStream();
        String text = body == null ? "" : new String(body.readAllBytes());
        System.out.println(status + " " + connection.getResponseMessage() + " " + text);
    }

    private static SSLContext trust(String file) throws Exception {
        KeyStore roots = KeyStore.getInstance(KeyStore.getDefaultType());
        roots.load(null);
        try (FileInputStream in = new FileInputStream(file)) {
            roots.setCertificateEntry("ca", CertificateFactory.getInstance("X.509").generateCertificate(in));
        }
        TrustManagerFactory managers = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
        managers.init(roots);
        SSLContext context = SSLContext.getInstance("TLS");
        context.init(null, managers.getTrustManagers(), null);
        return context;
    }
}
