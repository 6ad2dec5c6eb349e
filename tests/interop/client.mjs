// Lists and calls tools with the official TypeScript client.
//
//     client.mjs URL [TOOL ARGUMENTS EXPECTED]...
//
// Each TOOL must be listed; its result's text must contain EXPECTED. Runs where node_modules holds
// the packages of package.json.

import assert from "node:assert/strict";
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";

const [url, ...calls] = process.argv.slice(2);
const client = new Client({ name: "interop", version: "1.0.0" });
const transport = new StreamableHTTPClientTransport(new URL(url));
await client.connect(transport);
const names = [];
let cursor;
do {
  const page = await client.listTools(cursor === undefined ? {} : { cursor });
  names.push(...page.tools.map((tool) => tool.name));
  cursor = page.nextCursor;
} while (cursor !== undefined);
assert.equal(new Set(names).size, names.length, `a name is listed twice: ${names}`);
for (let at = 0; at < calls.length; at += 3) {
  const [name, text, expected] = calls.slice(at, at + 3);
  assert.ok(names.includes(name), `${name} is not listed, but ${names}`);
  const result = await client.callTool({ name, arguments: JSON.parse(text) });
  const answer = result.content.map((part) => part.text ?? "").join("\n");
  assert.ok(!result.isError, `${name}: ${answer}`);
  assert.ok(answer.includes(expected), `${name}: \`${expected}\` is not in \`${answer}\``);
}
await client.ping();
await transport.terminateSession();
await client.close();
console.log(`protocol ${transport.protocolVersion}, ${names.length} tools, ${calls.length / 3} calls`);
