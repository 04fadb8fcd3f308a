// Load through the gateway, with thresholds that fail the run:
//
//     export HTTP_PROXY=http://load:$(agentport issue-token --agent-id=load --batch)@127.0.0.1:8080
//     k6 run --vus 50 --duration 30s deploy/k6/egress.js
//
// ALLOWED is a URL that the policy lets the agent `load` reach, and that is yours
// to load; REFUSED is one that it does not. k6 takes the proxy from HTTP_PROXY and
// HTTPS_PROXY, and passes it by for loopback: use a name.

import http from "k6/http";
import { check } from "k6";

const allowed = __ENV.ALLOWED || "http://origin.internal.example/";
const refused = __ENV.REFUSED || "http://refused.example/";

export const options = {
  vus: 10,
  duration: "10s",
  thresholds: {
    checks: ["rate==1"],
    "http_req_duration{kind:allowed}": ["p(99)<200"],
    "http_req_duration{kind:refused}": ["p(99)<2000"],
  },
};

export default function () {
  const passed = http.get(allowed, { tags: { kind: "allowed" } });
  check(passed, { "what is allowed passes": (answer) => answer.status === 200 });
  // One in ten: refusals that repeat are answered more slowly, on purpose.
  if (__ITER % 10 === 0) {
    const denied = http.get(refused, { tags: { kind: "refused" }, responseCallback: http.expectedStatuses(403) });
    check(denied, {
      "what is not allowed is refused, with a reason": (answer) =>
        answer.status === 403 && (answer.headers["X-Agentport-Reason"] || "") !== "",
    });
  }
}
