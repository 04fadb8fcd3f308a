// One call by a Node client, with the proxy from the environment:
//
//     node node_client.mjs CLIENT URL [get|post|events|websocket]
//
// Prints `STATUS REASON BODY` for an answer, and for an error every message of
// its chain.

import { once } from "node:events";
import http from "node:http";
import http2 from "node:http2";
import https from "node:https";
import { createRequire } from "node:module";

// The packages lie in target/node, and where that is stands in the environment.
const require = createRequire(`${process.env.NODE_PACKAGES}/`);
const [client, url, mode = "get"] = process.argv.slice(2);
const BIG = Buffer.alloc(1_048_576, Buffer.from(Array.from({ length: 256 }, (_, at) => at)));
const proceed = url.replace("/events/", "/continue/");

async function byFetch(send = fetch, options = {}) {
  if (mode === "post") options = { ...options, method: "POST", body: BIG };
  const response = await send(url, options);
  if (mode !== "events") return [response.status, response.statusText, await response.text()];
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = (await reader.read()).value;
  await (await send(proceed, options)).text();
  for (let part; !(part = await reader.read()).done; ) text += part.value;
  return [response.status, response.statusText, text];
}

async function byModule() {
  const request = (url.startsWith("https") ? https : http).request(url, { method: mode === "post" ? "POST" : "GET" });
  request.end(mode === "post" ? BIG : undefined);
  const [response] = await once(request, "response");
  let text = "";
  for await (const part of response.setEncoding("utf8")) text += part;
  return [response.statusCode, response.statusMessage, text];
}

async function byUndici() {
  const { ProxyAgent, fetch } = require("undici");
  const proxy = new URL(process.env.http_proxy);
  // As its documentation has it: the credential beside the URL.
  const token = proxy.password && `Bearer ${decodeURIComponent(proxy.password)}`;
  const dispatcher = new ProxyAgent({ uri: proxy.origin, ...(token && { token }) });
  return byFetch(fetch, { dispatcher });
}

// By itself it reads the environment, and makes a CONNECT for https alone.
async function byAxios() {
  const axios = require("axios");
  const response = await axios.request({
    url,
    method: mode === "post" ? "POST" : "GET",
    data: mode === "post" ? BIG : undefined,
    responseType: "text",
    transformResponse: (text) => text,
    validateStatus: null,
  });
  return [response.status, response.statusText, response.data];
}

async function byWebSocket() {
  const socket = new WebSocket(url);
  await new Promise((resolve, reject) => {
    socket.onopen = resolve;
    socket.onerror = (event) => reject(event.error ?? new Error(event.message));
  });
  socket.send("echo me");
  const { data } = await new Promise((resolve) => (socket.onmessage = resolve));
  socket.close();
  return [101, "", data];
}

// HTTP/2 with prior knowledge to the gateway itself, which forwards.
async function byHttp2() {
  const proxy = new URL(process.env.http_proxy);
  const target = new URL(url);
  const session = http2.connect(proxy.origin);
  const fields = {
    ":method": mode === "post" ? "POST" : "GET",
    ":scheme": "http",
    ":authority": target.host,
    ":path": target.pathname,
  };
  if (proxy.password) fields["proxy-authorization"] = `Bearer ${decodeURIComponent(proxy.password)}`;
  const stream = session.request(fields);
  stream.end(mode === "post" ? BIG : undefined);
  const [head] = await once(stream, "response");
  let text = "";
  for await (const part of stream.setEncoding("utf8")) text += part;
  session.close();
  return [head[":status"], head["x-agentport-reason"] ?? "", text];
}

const clients = { fetch: () => byFetch(), module: byModule, undici: byUndici, axios: byAxios, websocket: byWebSocket, http2: byHttp2 };
try {
  console.log(...(await clients[client]()));
  process.exitCode = 0;
} catch (error) {
  for (let at = error; at; at = at.cause) console.log(`${at.name}: ${at.message}`);
  process.exitCode = 1;
}
