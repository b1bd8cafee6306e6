import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { after, before, test } from "node:test";

import { Etcd3 } from "etcd3";

let etcd;
let client;

// Runs an etcd on a port of its own choosing.
before(async () => {
  const any = "http://127.0.0.1:0";
  etcd = spawn("mvccstore-etcd", ["--memory", "--listen-client-urls", any, "--advertise-client-urls", any], {
    stdio: ["ignore", "ignore", "pipe"],
  });
  let address;
  for await (const text of createInterface({ input: etcd.stderr })) {
    const line = JSON.parse(text);
    address = line.address ?? address;
    if (line.msg === "ready to serve client requests") break;
  }
  etcd.stderr.resume();
  client = new Etcd3({ hosts: `http://${address}` });
});

after(async () => {
  client.close();
  etcd.kill();
  await once(etcd, "exit");
});

test("an order is found", async () => {
  const orders = client.namespace("an order is found/"); // one server for all tests, and keys of its own for each
  await orders.put("alice").value("tea");
  assert.equal(await orders.get("alice").string(), "tea");
});

test("a watch sees an order", async () => {
  const orders = client.namespace("a watch sees an order/");
  const watcher = await orders.watch().key("alice").create();
  const seen = once(watcher, "put");
  await orders.put("alice").value("tea");
  assert.equal((await seen)[0].value.toString(), "tea");
  await watcher.cancel();
});
