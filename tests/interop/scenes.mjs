// Plays scenes of the protocol beyond tools with one of the two official TypeScript clients.
//
//     scenes.mjs CLIENT MODE URL SCENE...
//
// CLIENT is `sdk` (major version 1) or `client` (major version 2). MODE is `legacy`, `auto` or a
// protocol version, and of no meaning to `sdk`. Every scene is played even if one fails. Runs where
// node_modules holds the packages of package.json.

import assert from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";

const [kind, mode, url, ...names] = process.argv.slice(2);
const LIMIT = 20_000;
const mark = `${kind}-${mode}-${process.pid}`;
const info = { name: "interop", version: "1.0.0" };
const capabilities = { sampling: {}, elicitation: {}, roots: {} };
const logged = [];
let onChange = () => {};

const answers = {
  "sampling/createMessage": (request) => {
    const { content } = request.params.messages[0];
    const { text } = Array.isArray(content) ? content[0] : content;
    return { role: "assistant", model: "none", content: { type: "text", text: `yes to ${text}` } };
  },
  "elicitation/create": () => ({ action: "accept", content: { name: "Ada" } }),
  "roots/list": () => ({ roots: [{ uri: "file:///interop" }] }),
};
const notices = {
  "notifications/message": ({ params }) => logged.push(`${params.level} ${params.data}`),
  "notifications/tools/list_changed": () => onChange(),
};

async function open() {
  if (kind === "sdk") {
    const { Client } = await import("@modelcontextprotocol/sdk/client/index.js");
    const { StreamableHTTPClientTransport } = await import(
      "@modelcontextprotocol/sdk/client/streamableHttp.js"
    );
    const types = await import("@modelcontextprotocol/sdk/types.js");
    const client = new Client(info, { capabilities });
    client.setRequestHandler(types.CreateMessageRequestSchema, answers["sampling/createMessage"]);
    client.setRequestHandler(types.ElicitRequestSchema, answers["elicitation/create"]);
    client.setRequestHandler(types.ListRootsRequestSchema, answers["roots/list"]);
    const message = notices["notifications/message"];
    client.setNotificationHandler(types.LoggingMessageNotificationSchema, message);
    const changed = notices["notifications/tools/list_changed"];
    client.setNotificationHandler(types.ToolListChangedNotificationSchema, changed);
    const transport = new StreamableHTTPClientTransport(new URL(url));
    await client.connect(transport);
    return { client, version: transport.protocolVersion, transport };
  }
  const { Client, StreamableHTTPClientTransport } = await import("@modelcontextprotocol/client");
  const wanted = mode === "legacy" || mode === "auto" ? mode : { pin: mode };
  const client = new Client(info, { capabilities, versionNegotiation: { mode: wanted } });
  for (const [method, answer] of Object.entries(answers)) client.setRequestHandler(method, answer);
  for (const [method, heard] of Object.entries(notices)) {
    client.setNotificationHandler(method, heard);
  }
  await client.connect(new StreamableHTTPClientTransport(new URL(url)));
  return { client, version: client.getNegotiatedProtocolVersion() };
}

const { client, version, transport } = await open();
const modern = version >= "2026";

async function all(method, field) {
  const found = [];
  let cursor;
  do {
    const page = await client[method](cursor === undefined ? {} : { cursor });
    found.push(...page[field]);
    cursor = page.nextCursor;
  } while (cursor !== undefined);
  return found;
}

const toolNames = async () => (await all("listTools", "tools")).map((tool) => tool.name);
const templateUris = async () =>
  (await all("listResourceTemplates", "resourceTemplates")).map((it) => it.uriTemplate);

const call = (name, args, options) =>
  kind === "sdk"
    ? client.callTool({ name, arguments: args }, undefined, options)
    : client.callTool({ name, arguments: args, ...(options?.meta && { _meta: options.meta }) }, options);

async function textOf(name, args, options) {
  const result = await call(name, args, options);
  const text = result.content.map((part) => part.text ?? "").join("\n");
  assert.ok(!result.isError, `${name} failed: ${text}`);
  return text;
}

const has = (text, expected) =>
  assert.ok(text.includes(expected), `\`${expected}\` is not in \`${text}\``);

const nextChange = () =>
  new Promise((resolve) => {
    onChange = () => resolve(true);
  });

const scenes = {
  async tools() {
    const found = await toolNames();
    assert.ok(found.includes("everything__echo") && found.includes("local__echo"), `${found}`);
    assert.equal(new Set(found).size, found.length, `a name is listed twice: ${found}`);
    has(await textOf("everything__get-sum", { a: 2, b: 40 }), "42");
    has(await textOf("local__echo", { message: "hé" }), "hé");
  },

  async progress() {
    for (const server of ["everything", "local"]) {
      const steps = [];
      const onprogress = (it) => steps.push(it.progress);
      const name = `${server}__trigger-long-running-operation`;
      has(await textOf(name, { duration: 0.4, steps: 4 }, { onprogress }), "completed");
      await sleep(100);
      assert.deepEqual(steps, [1, 2, 3, 4], server);
    }
  },

  async prompts() {
    const found = (await all("listPrompts", "prompts")).map((prompt) => prompt.name);
    for (const name of ["everything__simple-prompt", "local__simple-prompt", "shared__greeting"]) {
      assert.ok(found.includes(name), `${name} is not in ${found}`);
    }
    const simple = await client.getPrompt({ name: "local__simple-prompt" });
    has(simple.messages[0].content.text, "simple prompt");
    const args = { city: "Köln", state: "NRW" };
    const asked = await client.getPrompt({ name: "everything__args-prompt", arguments: args });
    has(asked.messages[0].content.text, "Köln, NRW");
  },

  async resources() {
    const uris = (await all("listResources", "resources")).map((it) => it.uri);
    assert.equal(new Set(uris).size, uris.length, `an address is listed twice: ${uris}`);
    for (const server of ["everything", "local"]) {
      const uri = uris.find((it) => it.includes(`/${server}/`) && it.includes("features.md"));
      assert.ok(uri, `nothing of ${server} in ${uris}`);
      has((await client.readResource({ uri })).contents[0].text, "Everything");
    }
  },

  async templates() {
    const found = await templateUris();
    for (const server of ["everything", "local"]) {
      const of = found.find((it) => it.includes(`/${server}/`) && it.includes("dynamic/text"));
      assert.ok(of, `nothing of ${server} in ${found}`);
      const uri = of.replace("{resourceId}", "7");
      has((await client.readResource({ uri })).contents[0].text, "Resource 7");
    }
  },

  async completion() {
    const ref = { type: "ref/prompt", name: "everything__completable-prompt" };
    const first = await client.complete({ ref, argument: { name: "department", value: "S" } });
    assert.deepEqual(first.completion.values, ["Sales", "Support"]);
    const second = await client.complete({
      ref,
      argument: { name: "name", value: "" },
      context: { arguments: { department: "Sales" } },
    });
    assert.deepEqual(second.completion.values, ["David", "Eve", "Frank"]);
    const found = await templateUris();
    const uri = found.find((it) => it.includes("/local/") && it.includes("dynamic/text"));
    const third = await client.complete({
      ref: { type: "ref/resource", uri },
      argument: { name: "resourceId", value: "7" },
    });
    assert.deepEqual(third.completion.values, ["7"]);
  },

  async logging() {
    if (!modern) await client.setLoggingLevel("info");
    const meta = modern ? { "io.modelcontextprotocol/logLevel": "info" } : undefined;
    has(await textOf("shared__steps", { count: 1 }, { meta }), "1 steps");
    await sleep(100);
    assert.ok(logged.includes("info begun"), `heard ${logged}`);
  },

  async cancel() {
    const controller = new AbortController();
    const waiting = call("shared__wait", { name: mark }, { signal: controller.signal });
    await sleep(500);
    controller.abort();
    await assert.rejects(waiting);
    let text = "";
    for (let tries = 0; tries < 50; tries += 1) {
      text = await textOf("shared__was_cancelled", {});
      if (text.includes(mark)) return;
      await sleep(100);
    }
    assert.fail(`the server was never told: ${text}`);
  },

  async changes() {
    for (const server of ["shared", "new"]) {
      let changed = nextChange();
      const subscription = modern ? await client.listen({ toolsListChanged: true }) : undefined;
      await sleep(200);
      const name = `${server}-${mark}`;
      has(await textOf(`${server}__grow`, { name }), "grown");
      while (!(await toolNames()).includes(`${server}__${name}`)) {
        // Others make changes too.
        const heard = await Promise.race([changed, sleep(8000)]);
        assert.ok(heard, `no list_changed because of ${server}`);
        changed = nextChange();
      }
      await subscription?.close();
    }
  },

  async sampling() {
    has(await textOf("asker__ask_model", { question: "tea?" }), "the model says yes to tea?");
  },

  async elicitation() {
    has(await textOf("asker__ask_person", {}), "accept Ada");
  },

  async "elicitation-modern"() {
    has(await textOf("new__ask_person", {}), "accept Ada");
  },

  async roots() {
    has(await textOf("asker__ask_roots", {}), "file:///interop");
  },

  // A server of the handshake era asks in the middle of a call, where a modern client cannot be.
  async refusal() {
    const result = await call("asker__ask_model", { question: "tea?" });
    assert.ok(result.isError, JSON.stringify(result));
    has(result.content[0].text, "does not offer");
  },
};

const failed = [];
for (const name of names) {
  const limit = new AbortController();
  const late = sleep(LIMIT, undefined, { signal: limit.signal }).then(
    () => Promise.reject(new Error(`not done within ${LIMIT} ms`)),
    () => {},
  );
  try {
    await Promise.race([scenes[name](), late]);
  } catch (error) {
    failed.push(name);
    console.log(`--- ${name}`);
    console.log(error);
  }
  limit.abort();
}
if (!modern) await client.ping();
await transport?.terminateSession();
await client.close();
if (failed.length > 0) {
  console.log(`protocol ${version}, failed: ${failed.join(" ")}`);
  process.exit(1);
}
console.log(`protocol ${version}, ${names.length} scenes`);
process.exit(0);
