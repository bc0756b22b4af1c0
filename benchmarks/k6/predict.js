// k6 asks a policy server for actions, one after another in each of CLIENTS clients:
//   k6 run -e ADDRESS=host:50051 -e OBSERVATIONS=observations.json -e CLIENTS=32 -e SECONDS=30 predict.js
// OBSERVATIONS: a JSON list of PredictActions requests, images in base64 (benchmarks/load.py writes it).
// -e TOKEN=... sends a bearer token.
import grpc from "k6/net/grpc";
import { Counter } from "k6/metrics";

const requests = JSON.parse(open(__ENV.OBSERVATIONS));
const seconds = Number(__ENV.SECONDS || 30);
const clients = Number(__ENV.CLIENTS || 1);
const wrong = new Counter("wrong_answers");
const client = new grpc.Client();
client.load([__ENV.PROTOS || "../../protos"], "vlarl/policy/v1/policy.proto");

export const options = {
  scenarios: {
    load: { executor: "constant-vus", vus: clients, duration: `${seconds}s`, gracefulStop: "60s" },
  },
  summaryTrendStats: ["min", "avg", "p(50)", "p(95)", "p(99)", "max"],
};

export default function () {
  if (__ITER === 0) {
    client.connect(__ENV.ADDRESS, { plaintext: true });
  }
  const request = requests[(__VU - 1) % requests.length];
  const metadata = __ENV.TOKEN ? { authorization: `Bearer ${__ENV.TOKEN}` } : {};
  const method = "vlarl.policy.v1.PolicyService/PredictActions";
  const answer = client.invoke(method, request, { metadata, timeout: "60s" });
  const whole = answer.status === grpc.StatusOK && answer.message.actions[0].tokenIds.length === 7;
  wrong.add(whole ? 0 : 1);
}

export function handleSummary(data) {
  return { stdout: JSON.stringify(data.metrics) };
}
