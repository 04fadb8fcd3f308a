// One call by Go's net/http: `client MODE URL`. The proxy, its credential and the
// CAs come from the environment (HTTP_PROXY, HTTPS_PROXY, SSL_CERT_FILE).
//
// MODE is get, post (1 MiB), events (prints each as it comes) or http1 (no
// HTTP/2 inside the tunnel).
package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"
)

func main() {
	mode, url := os.Args[1], os.Args[2]
	transport := &http.Transport{Proxy: http.ProxyFromEnvironment}
	if mode == "http1" {
		transport.Protocols = new(http.Protocols)
		transport.Protocols.SetHTTP1(true)
	}
	client := &http.Client{Transport: transport, Timeout: 30 * time.Second}
	var response *http.Response
	var err error
	if mode == "post" {
		body := bytes.NewReader(make([]byte, 1<<20))
		response, err = client.Post(url, "application/octet-stream", body)
	} else {
		response, err = client.Get(url)
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	defer response.Body.Close()
	fmt.Println(response.Status, response.Proto)
	if mode == "events" {
		lines := bufio.NewScanner(response.Body)
		for lines.Scan() {
			if strings.HasPrefix(lines.Text(), "data:") {
				fmt.Println(lines.Text())
			}
			if lines.Text() == "data: first" {
				// The origin holds the second back until it is asked to go on.
				next, err := client.Get(strings.Replace(url, "/events/", "/continue/", 1))
				if err != nil {
					fmt.Println(err)
					os.Exit(1)
				}
				next.Body.Close()
			}
		}
		err = lines.Err()
	} else {
		_, err = io.Copy(os.Stdout, response.Body)
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}
