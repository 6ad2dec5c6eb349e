// A plain MCP client of both eras, and what it does through the router for each scenario of the
// suite. Failed calls are said and do not end it: the suite judges by what reached its server.
//
//     drive.mjs URL
const url = process.argv[2];
const scenario = process.env.MCP_CONFORMANCE_SCENARIO;
const version = process.env.MCP_CONFORMANCE_PROTOCOL_VERSION;
const context = JSON.parse(process.env.MCP_CONFORMANCE_CONTEXT ?? '{}');
const modern = version >= '2026-07-28';

const CLIENT = { name: 'conformance-driver', version: '1.0.0' };
const CAPABILITIES = { elicitation: {}, sampling: {}, roots: {} };

let lastId = 0;
let session;
// Schemas of the tools that were listed: some arguments travel as headers too.
const schemas = new Map();

// A header's value; in base64 if it would not survive as it is.
function headerValue(value) {
    const text = String(value);
    const plain = /^[\x20-\x7e]*$/.test(text) && text === text.trim() && !/^=\?base64\?.*\?=$/.test(text);
    return plain ? text : `=?base64?${Buffer.from(text, 'utf8').toString('base64')}?=`;
}

function headersOf(method, params) {
    const headers = {
        'content-type': 'application/json',
        accept: 'application/json, text/event-stream',
    };
    if (!modern) {
        if (session) headers['mcp-session-id'] = session;
        if (method !== 'initialize') headers['mcp-protocol-version'] = version;
        return headers;
    }
    headers['mcp-protocol-version'] = version;
    headers['mcp-method'] = method;
    const name = params.name ?? params.uri;
    if (name !== undefined) headers['mcp-name'] = headerValue(name);
    const properties = schemas.get(params.name)?.properties ?? {};
    for (const [argument, schema] of Object.entries(properties)) {
        const value = params.arguments?.[argument];
        if (schema['x-mcp-header'] && value !== undefined && value !== null) {
            try {
                new Headers([[`mcp-param-${schema['x-mcp-header']}`, 'x']]);
                headers[`mcp-param-${schema['x-mcp-header']}`] = headerValue(value);
            } catch {
                console.error(`${params.name} names a header that cannot exist`);
            }
        }
    }
    return headers;
}

// The messages of an answer, which is one JSON object or a stream of events.
function messagesOf(response, text) {
    if (!response.headers.get('content-type')?.includes('text/event-stream')) {
        return text ? [JSON.parse(text)] : [];
    }
    return text
        .split(/\r?\n\r?\n/)
        .map((event) => event.split(/\r?\n/).filter((line) => line.startsWith('data:')))
        .map((lines) => lines.map((line) => line.slice(5).trimStart()).join('\n'))
        .filter((data) => data)
        .map((data) => JSON.parse(data));
}

async function send(method, params = {}, notification = false) {
    const message = { jsonrpc: '2.0', method, params: { ...params } };
    if (!notification) message.id = ++lastId;
    if (modern) {
        message.params._meta = {
            'io.modelcontextprotocol/protocolVersion': version,
            'io.modelcontextprotocol/clientInfo': CLIENT,
            'io.modelcontextprotocol/clientCapabilities': CAPABILITIES,
        };
    }
    const response = await fetch(url, {
        method: 'POST',
        headers: headersOf(method, params),
        body: JSON.stringify(message),
        signal: AbortSignal.timeout(10_000),
    });
    const text = await response.text();
    session ??= response.headers.get('mcp-session-id') ?? undefined;
    if (notification) return undefined;
    const answer = messagesOf(response, text).find((it) => it.id === message.id);
    const said = JSON.stringify(answer) ?? `HTTP ${response.status} ${text}`;
    console.log(`${method} ${params.name ?? params.uri ?? ''}: ${said.slice(0, 500)}`);
    return answer?.result;
}

// Calls a tool and fills in every form it sends back.
async function call(name, args = {}, between = async () => {}) {
    let result = await send('tools/call', { name, arguments: args });
    for (let round = 0; round < 5 && result?.resultType === 'input_required'; round += 1) {
        await between();
        const inputResponses = {};
        for (const key of Object.keys(result.inputRequests ?? {})) {
            inputResponses[key] = { action: 'accept', content: { confirmed: true } };
        }
        const again = { name, arguments: args, inputResponses };
        if (result.requestState !== undefined) again.requestState = result.requestState;
        result = await send('tools/call', again);
    }
    return result;
}

async function list() {
    const tools = (await send('tools/list'))?.tools ?? [];
    for (const tool of tools) schemas.set(tool.name, tool.inputSchema);
    return tools;
}

// Something that a schema allows for each argument.
function fitting(schema) {
    const sample = { string: 'text', integer: 1, number: 1.5, boolean: true, array: [], object: {}, null: null };
    const properties = Object.entries(schema?.properties ?? {});
    return Object.fromEntries(properties.map(([name, { type }]) => [name, sample[type] ?? 'text']));
}

async function callAll() {
    for (const tool of await list()) await call(tool.name, fitting(tool.inputSchema));
}

const scenarios = {
    async tools_call() {
        await list();
        await call('add_numbers', { a: 5, b: 3 });
    },
    async 'http-standard-headers'() {
        await callAll();
        for (const resource of (await send('resources/list'))?.resources ?? []) {
            await send('resources/read', { uri: resource.uri });
        }
        for (const prompt of (await send('prompts/list'))?.prompts ?? []) {
            await send('prompts/get', { name: prompt.name });
        }
    },
    async 'http-custom-headers'() {
        await list();
        for (const { name, arguments: args } of context.toolCalls) await call(name, args);
    },
    async 'json-schema-2020-12-preservation'() {
        const tools = await list();
        const focal = tools.find((tool) => tool.name === 'json_schema_2020_12_tool');
        await call('json_schema_echo', { schema: focal?.inputSchema });
    },
    async 'sep-2322-client-request-state'() {
        await list();
        await call('test_mrtr_echo_state', {}, () => call('test_mrtr_unrelated'));
        await call('test_mrtr_no_state');
        await call('test_mrtr_no_result_type');
    },
};

if (!modern) {
    await send('initialize', { protocolVersion: version, capabilities: CAPABILITIES, clientInfo: CLIENT });
    await send('notifications/initialized', {}, true);
}
await (scenarios[scenario] ?? callAll)();
