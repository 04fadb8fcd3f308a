// The origins behind the gateway: HTTP/1.1, HTTP/2 and WebSocket, plain and over
// TLS, on two pairs of listeners. The `open` pair is for what is allowed; nothing
// may ever reach the `closed` pair. All it sees is kept for `/-/seen`.
//
//     node origin.mjs FOLDER      with key.pem, cert.pem and files/ in the folder
//
// The first line on standard output has the ports. Ends with its standard input.

import { createHash } from "node:crypto";
import { createReadStream, readFileSync, statSync } from "node:fs";
import http from "node:http";
import http2 from "node:http2";
import path from "node:path";
import { createRequire } from "node:module";

const require = createRequire(path.join(process.cwd(), "target/node/"));
const { WebSocketServer } = require("ws");

const folder = process.argv[2];
const files = path.join(folder, "files");
const tls = {
  key: readFileSync(path.join(folder, "key.pem")),
  cert: readFileSync(path.join(folder, "cert.pem")),
  allowHTTP1: true,
};
// A second event that nobody asks for never comes, and the stream ends.
const PATIENCE_MS = 15_000;

let seen = [];
const waiting = new Map();

function answer(request, response) {
  const url = new URL(request.url, "http://origin");
  const [, kind, ...rest] = url.pathname.split("/");
  if (kind === "-") {
    // The one who asks comes straight, and is none of those who are looked for.
    seen = seen.filter((entry) => entry.connection !== nameOf(request.socket));
    return void response.end(JSON.stringify(seen));
  }
  seen.push({
    what: "request",
    pair: response.pair,
    encrypted: Boolean(request.socket.encrypted),
    version: request.httpVersion,
    method: request.method,
    url: request.url,
    headers: request.headers,
  });
  switch (kind) {
    case "hello":
      return void response.end("hello from the origin\n");
    case "upload":
      return upload(request, response);
    case "download":
      return download(Number(rest[0]), response);
    case "events":
      return events(rest[0], response);
    case "continue":
      waiting.get(rest[0])?.();
      return void response.end("continued\n");
    case "grpc":
      return void grpc(rest, request, response);
    case "files":
      return file(rest, response);
    default:
      response.statusCode = 404;
      response.end("nothing here\n");
  }
}

// The same for a socket and for the TLS within it.
const nameOf = (socket) => `${socket.localPort}/${socket.remotePort}`;

function upload(request, response) {
  const hash = createHash("sha256");
  let length = 0;
  request.on("data", (chunk) => {
    hash.update(chunk);
    length += chunk.length;
  });
  request.on("end", () => response.end(`${length} ${hash.digest("hex")}\n`));
}

async function download(length, response) {
  const block = Buffer.alloc(65_536, "0123456789abcdef");
  response.setHeader("content-length", length);
  for (let left = length; left > 0; left -= block.length) {
    if (!response.write(left < block.length ? block.subarray(0, left) : block)) {
      await new Promise((resolve) => response.once("drain", resolve));
    }
  }
  response.end();
}

// The second event is sent when the client says that it has the first, so that
// whoever holds events back is found out without a clock.
function events(name, response) {
  response.setHeader("content-type", "text/event-stream");
  response.write("data: first\n\n");
  const timer = setTimeout(() => finish("data: nobody had the first\n\n"), PATIENCE_MS);
  const finish = (text) => {
    clearTimeout(timer);
    waiting.delete(name);
    response.end(text);
  };
  waiting.set(name, () => finish("data: second\n\n"));
}

// A call of gRPC: a prefix of five bytes before each message, the status in the
// trailers. Of a stream the second message is held like the second event.
async function grpc([kind, name], request, response) {
  const frame = (text) => {
    const head = Buffer.alloc(5);
    head.writeUInt32BE(text.length, 1);
    return Buffer.concat([head, Buffer.from(text)]);
  };
  const asked = Buffer.concat(await request.toArray());
  const finish = (text) => {
    response.setTrailer("grpc-status", "0");
    response.end(frame(text));
  };
  response.writeHead(200, { "content-type": "application/grpc" });
  if (kind === "stream") {
    const timer = setTimeout(() => finish("nobody had the first"), PATIENCE_MS);
    waiting.set(name, () => {
      clearTimeout(timer);
      waiting.delete(name);
      finish("second");
    });
    return void response.write(frame("first"));
  }
  if (kind === "continue") waiting.get(name)?.();
  finish(asked.subarray(5).equals(Buffer.from("please")) ? "hello from the origin" : "what?");
}

function file(parts, response) {
  let name = path.join(files, ...parts.map(decodeURIComponent));
  const stat = (at) => statSync(at, { throwIfNoEntry: false });
  if (stat(name)?.isDirectory()) name = path.join(name, "index.html");
  const found = stat(name);
  if (!name.startsWith(files) || !found) {
    response.statusCode = 404;
    return void response.end("no such file\n");
  }
  response.setHeader("content-type", name.endsWith(".html") ? "text/html" : "application/octet-stream");
  response.setHeader("content-length", found.size);
  createReadStream(name).pipe(response);
}

function start(server, pair) {
  const sockets = new WebSocketServer({ noServer: true });
  server.on("connection", (socket) => seen.push({ what: "connection", pair, connection: nameOf(socket) }));
  server.on("request", (request, response) => {
    response.pair = pair;
    answer(request, response);
  });
  server.on("upgrade", (request, socket, head) => {
    seen.push({
      what: "request",
      pair,
      encrypted: Boolean(socket.encrypted),
      version: "websocket",
      method: request.method,
      url: request.url,
      headers: request.headers,
    });
    sockets.handleUpgrade(request, socket, head, (webSocket) => {
      webSocket.on("message", (data, binary) => webSocket.send(data, { binary }));
      webSocket.on("error", () => webSocket.terminate());
    });
  });
  server.on("sessionError", () => {});
  return new Promise((resolve) => server.listen(0, "127.0.0.1", () => resolve(server.address().port)));
}

const ports = {
  plain: await start(http.createServer(), "open"),
  tls: await start(http2.createSecureServer(tls), "open"),
  closed_plain: await start(http.createServer(), "closed"),
  closed_tls: await start(http2.createSecureServer(tls), "closed"),
};
console.log(JSON.stringify(ports));
process.stdin.resume();
process.stdin.on("end", () => process.exit(0));
