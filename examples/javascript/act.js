// Asks a policy server for one action, with what protos/ says and nothing else of this project.
//
//   npm ci
//   node act.js --address HOST:50051 --token-file client --image frame.png \
//     --instruction "put the bowl on the plate"
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

const SERVICE = "vlarl.policy.v1.PolicyService";
const PROTOS = fileURLToPath(new URL("../../protos", import.meta.url));
const MEBIBYTE = 2 ** 20;

// Balanced over the addresses of a name (dns:///NAME:PORT), repeated where a server is
// unavailable: PredictActions changes nothing.
const SERVICE_CONFIG = {
  loadBalancingConfig: [{ round_robin: {} }],
  methodConfig: [
    {
      name: [{ service: SERVICE, method: "PredictActions" }],
      retryPolicy: {
        maxAttempts: 5,
        initialBackoff: "0.1s",
        maxBackoff: "2s",
        backoffMultiplier: 2.5,
        retryableStatusCodes: ["UNAVAILABLE"],
      },
    },
  ],
};

function openClient(address, tlsCa) {
  const contract = grpc.loadPackageDefinition(
    protoLoader.loadSync("vlarl/policy/v1/policy.proto", {
      includeDirs: [PROTOS],
      defaults: true,
      longs: String, // a number of JavaScript holds 53 bits of the 64
    }),
  );
  const credentials = tlsCa
    ? grpc.credentials.createSsl(readFileSync(tlsCa))
    : grpc.credentials.createInsecure();
  return new contract.vlarl.policy.v1.PolicyService(address, credentials, {
    "grpc.service_config": JSON.stringify(SERVICE_CONFIG),
    "grpc.max_send_message_length": 32 * MEBIBYTE,
    "grpc.max_receive_message_length": 32 * MEBIBYTE,
    // A proxy for the way out (http_proxy, grpc_proxy) must not catch a neighbour's calls.
    "grpc.enable_http_proxy": 0,
  });
}

// Resolves with a PredictActionsResponse; fails with gRPC's error, whose code and details say why.
function predictActions(client, request, token, timeoutSeconds) {
  const metadata = new grpc.Metadata();
  if (token) metadata.set("authorization", `Bearer ${token}`);
  const deadline = new Date(Date.now() + 1000 * timeoutSeconds);
  return new Promise((resolve, reject) => {
    client.predictActions(request, metadata, { deadline }, (error, response) =>
      error ? reject(error) : resolve(response),
    );
  });
}

const { values: options } = parseArgs({
  options: {
    address: { type: "string", default: "127.0.0.1:50051" },
    image: { type: "string" }, // JPEG or PNG
    instruction: { type: "string" },
    "token-file": { type: "string" },
    "tls-ca": { type: "string" },
    temperature: { type: "string", default: "0" },
    seed: { type: "string" },
    "unnorm-key": { type: "string", default: "" },
    timeout: { type: "string", default: "30" }, // seconds
  },
});
if (!options.image || !options.instruction) {
  console.error("error: --image and --instruction are needed");
  process.exit(2);
}
const token = options["token-file"] && readFileSync(options["token-file"], "utf8").split("\n")[0];
const client = openClient(options.address, options["tls-ca"]);
try {
  const { actions } = await predictActions(
    client,
    {
      observations: [
        {
          image: readFileSync(options.image),
          instruction: options.instruction,
          ...(options.seed !== undefined && { seed: options.seed }),
        },
      ],
      temperature: Number(options.temperature),
      unnormKey: options["unnorm-key"],
    },
    token?.trim(),
    Number(options.timeout),
  );
  console.log(JSON.stringify(actions[0]));
} catch (error) {
  console.error(`error: ${options.address}: ${error.details} (${grpc.status[error.code]})`);
  process.exitCode = 1;
} finally {
  client.close();
}
