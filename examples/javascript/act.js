// Asks a policy server for one answer, with what protos/ says and nothing else of this project.
//
//   npm ci
//   node act.js --address HOST:50051 --token-file client --image frame.png \
//     --instruction "put the bowl on the plate"
//
// A policy that sees several cameras and reads the arm wants more:
//
//   node act.js ... --camera robot0_eye_in_hand=wrist.png --proprio=-0.1,0,0.9,3.1,0,0,0.04,-0.04
//
// What it needs is what GetPolicy says. Without the "=", Node.js refuses numbers that begin with a
// minus.
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

const SERVICE = "vlarl.policy.v1.PolicyService";
const PROTOS = fileURLToPath(new URL("../../protos", import.meta.url));
const MEBIBYTE = 2 ** 20;

// Balanced over the addresses of a name (dns:///NAME:PORT), repeated where a server is
// unavailable: neither method changes anything.
const SERVICE_CONFIG = {
  loadBalancingConfig: [{ round_robin: {} }],
  methodConfig: [
    {
      name: ["GetPolicy", "PredictActions"].map((method) => ({ service: SERVICE, method })),
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

// Resolves with the method's response; fails with gRPC's error, whose code and details say why.
function ask(client, method, request, token, timeoutSeconds) {
  const metadata = new grpc.Metadata();
  if (token) metadata.set("authorization", `Bearer ${token}`);
  const deadline = new Date(Date.now() + 1000 * timeoutSeconds);
  return new Promise((resolve, reject) => {
    client[method](request, metadata, { deadline }, (error, response) =>
      error ? reject(error) : resolve(response),
    );
  });
}

// The pictures of further cameras, from "NAME=FILE".
function furtherImages(cameras) {
  return cameras.map((given) => {
    const equals = given.indexOf("="); // the first one: a file's name may have others
    if (equals < 1) throw new Error(`--camera takes NAME=FILE, not ${given}`);
    return { camera: given.slice(0, equals), image: readFileSync(given.slice(equals + 1)) };
  });
}

// What is missing of what the policy reads, in words; empty: nothing.
function missing(policy, images, proprio) {
  const given = new Set(images.map(({ camera }) => camera));
  const lacking = policy.cameras.slice(1).filter((camera) => !given.has(camera));
  const needs = lacking.map((camera) => `--camera ${camera}=FILE`);
  if (policy.proprio && proprio.length !== policy.proprio)
    needs.push(`--proprio=NUMBER,... with ${policy.proprio} numbers`);
  return needs.join(", ");
}

// An answer's values, of a chunk a row for each control step.
function rows({ horizon, values }) {
  if (horizon <= 1) return values;
  const width = values.length / horizon;
  return Array.from({ length: horizon }, (_, step) => values.slice(step * width, (step + 1) * width));
}

// What the command line says; ends the program where that can't be.
function commandLine() {
  try {
    const { values } = parseArgs({
      options: {
        address: { type: "string", default: "127.0.0.1:50051" },
        image: { type: "string" }, // JPEG or PNG, of the main camera
        camera: { type: "string", multiple: true, default: [] }, // NAME=FILE, of another one
        proprio: { type: "string", default: "" }, // numbers with commas between them
        instruction: { type: "string" },
        "token-file": { type: "string" },
        "tls-ca": { type: "string" },
        temperature: { type: "string", default: "0" },
        seed: { type: "string" },
        "unnorm-key": { type: "string", default: "" },
        timeout: { type: "string", default: "30" }, // seconds
      },
    });
    if (!values.image || !values.instruction) throw new Error("--image and --instruction are needed");
    return values;
  } catch (error) {
    console.error(`error: ${error.message.replaceAll("\n", " ")}`);
    process.exit(2);
  }
}

const options = commandLine();
const timeout = Number(options.timeout);
const proprio = options.proprio ? options.proprio.split(",").map(Number) : [];
let client;
try {
  const token = options["token-file"] && readFileSync(options["token-file"], "utf8").split("\n")[0];
  client = openClient(options.address, options["tls-ca"]);
  const images = furtherImages(options.camera);
  const policy = await ask(client, "getPolicy", {}, token?.trim(), timeout);
  const needs = missing(policy, images, proprio);
  if (needs) throw new Error(`the policy needs ${needs}`);
  const request = {
    observations: [
      {
        image: readFileSync(options.image),
        instruction: options.instruction,
        images,
        proprio,
        ...(options.seed !== undefined && { seed: options.seed }),
      },
    ],
    temperature: Number(options.temperature),
    unnormKey: options["unnorm-key"],
  };
  const { actions } = await ask(client, "predictActions", request, token?.trim(), timeout);
  const { horizon, ...action } = actions[0];
  console.log(JSON.stringify({ ...action, values: rows(actions[0]) }));
} catch (error) {
  const said = error.details ? `${error.details} (${grpc.status[error.code]})` : error.message;
  console.error(`error: ${options.address}: ${said}`);
  process.exitCode = 1;
} finally {
  client?.close();
}
