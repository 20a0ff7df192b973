// SPDX-License-Identifier: Apache-2.0
//
// The gRPC service as another implementation of gRPC sees it: unary calls, errors with their
// details, a stream to its end and one that is cancelled.
//
//   node client.js PROTO_DIR TARGET [CA CERT KEY]
//
// Says one JSON object; fails where anything is not as it must be.
"use strict";

const assert = require("assert");
const fs = require("fs");
const path = require("path");
// Where npm has put them: beside the directory that this runs in.
const load = (name) => require(require.resolve(name, { paths: [process.cwd()] }));
const grpc = load("@grpc/grpc-js");
const protoLoader = load("@grpc/proto-loader");

const [protoDir, target, ca, cert, key] = process.argv.slice(2);

function loadService() {
  const definition = protoLoader.loadSync("postcopy/v1/control.proto", {
    includeDirs: [path.resolve(protoDir)],
    keepCase: true,
    enums: String,
    longs: String,
    defaults: true,
  });
  return grpc.loadPackageDefinition(definition).postcopy.v1;
}

function credentials() {
  if (!ca) return grpc.credentials.createInsecure();
  return grpc.credentials.createSsl(...[ca, key, cert].map((file) => fs.readFileSync(file)));
}

const deadline = () => ({ deadline: Date.now() + 30000 });

function unary(client, method, request) {
  return new Promise((resolve, reject) => {
    client[method](request, deadline(), (error, answer) =>
      error ? reject(error) : resolve(answer));
  });
}

async function refused(client, method, request, code) {
  const error = await unary(client, method, request).then(
    () => assert.fail(`${method} was accepted`),
    (why) => why);
  assert.strictEqual(error.code, code, error.message);
  return error;
}

// All messages of a stream; `onMessage` may cancel it or make something happen.
function stream(call, onMessage) {
  return new Promise((resolve) => {
    const states = [];
    call.on("data", (migration) => {
      states.push(migration.state);
      onMessage(states.length);
    });
    call.on("error", (error) => resolve({ states, code: error.code }));
    call.on("end", () => resolve({ states, code: grpc.status.OK }));
  });
}

async function main() {
  const service = loadService();
  const migrations = new service.Migrations(target, credentials());
  const host = new service.Host(target, credentials());
  const info = await unary(host, "GetInfo", {});
  assert(info.cpus > 0);

  const prepared = await unary(migrations, "Prepare", {
    id: "js", role: "ROLE_DESTINATION", token: Buffer.alloc(32, 7),
    source_address: "127.0.0.1:9", limits: { streams: 3 },
  });
  assert.strictEqual(prepared.state, "STATE_PREPARED");
  assert.strictEqual(prepared.destination.limits.streams, 3);

  const missing = await refused(migrations, "Get", { id: "nobody" }, grpc.status.NOT_FOUND);
  assert(missing.details.includes("nobody"));
  const details = missing.metadata.get("grpc-status-details-bin")[0];
  assert(details.includes("MIGRATION_NOT_FOUND"));
  await refused(migrations, "Start", { id: "js" }, grpc.status.FAILED_PRECONDITION);

  const cancelled = migrations.watch({ id: "js", interval: { nanos: 50000000 } }, deadline());
  const given = await stream(cancelled, (n) => n === 3 && cancelled.cancel());
  assert.strictEqual(given.code, grpc.status.CANCELLED);

  const watch = migrations.watch({ id: "js" }, deadline());
  const ended = await stream(watch, (n) => n === 1 && unary(migrations, "Cancel", { id: "js" }));
  assert.strictEqual(ended.code, grpc.status.OK);
  assert.strictEqual(ended.states[ended.states.length - 1], "STATE_CANCELLED");

  console.log(JSON.stringify({ version: info.version, states: ended.states }));
  migrations.close();
  host.close();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
