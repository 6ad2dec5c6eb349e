"""Plays scenes of the protocol beyond tools with one of three Python clients.

    scenes.py CLIENT MODE TARGET SCENE...

CLIENT is `mcp` (the official SDK of today), `old` (the same before its second major version; its
own environment) or `fastmcp`. MODE is `legacy`, `auto` or a protocol version, and of no meaning
to `old`. TARGET is a URL or `stdio:` with a command line. Every scene is played even if one fails.
"""

import asyncio
import os
import shlex
import sys
import traceback
from contextlib import asynccontextmanager

kind, mode, target = sys.argv[1:4]
LIMIT = 20
mark = f"{kind}-{mode}-{os.getpid()}".replace(".", "-")
heard: list[str] = []
logged: list[str] = []
change = asyncio.Event()


def told(message) -> None:
    """A message of the server's own, in whatever class the client has for it."""
    method = getattr(getattr(message, "root", message), "method", None)
    heard.append(str(method))
    if method == "notifications/tools/list_changed":
        change.set()


async def on_log(params) -> None:
    logged.append(f"{params.level} {params.data}")


class Sdk:
    """What the scenes need, with the official SDK of today."""

    modern = False

    @asynccontextmanager
    async def open(self):
        import mcp
        import mcp_types as types

        self.types = types

        async def sample(context, params):
            text = params.messages[0].content
            text = (text[0] if isinstance(text, list) else text).text
            content = types.TextContent(type="text", text=f"yes to {text}")
            return types.CreateMessageResult(role="assistant", content=content, model="none")

        async def elicit(context, params):
            return types.ElicitResult(action="accept", content={"name": "Ada"})

        async def roots(context):
            return types.ListRootsResult(roots=[types.Root(uri="file:///interop")])

        async def message(it):
            told(it)

        async with mcp.Client(
            self.server(mcp),
            mode=mode,
            sampling_callback=sample,
            elicitation_callback=elicit,
            list_roots_callback=roots,
            logging_callback=on_log,
            log_level="info",
            message_handler=message,
            read_timeout_seconds=LIMIT,
        ) as self.client:
            self.modern = self.client.protocol_version >= "2026"
            yield self.client.protocol_version

    def server(self, mcp):
        if not target.startswith("stdio:"):
            return target
        command, *args = shlex.split(target.removeprefix("stdio:"))
        return mcp.StdioServerParameters(command=command, args=args)

    async def call(self, name, arguments, progress=None):
        return await self.client.call_tool(name, arguments, progress_callback=progress)

    async def pages(self, method, field):
        found, cursor = [], None
        while True:
            page = await getattr(self.client, method)(cursor=cursor)
            found += getattr(page, field)
            cursor = page.next_cursor
            if cursor is None:
                return found

    async def tools(self):
        found, cursor = [], None
        while True:
            page = await self.client.list_tools(cursor=cursor, cache_mode="refresh")
            found += [tool.name for tool in page.tools]
            cursor = page.next_cursor
            if cursor is None:
                return found

    async def prompts(self):
        return [prompt.name for prompt in await self.pages("list_prompts", "prompts")]

    async def prompt(self, name, arguments):
        return (await self.client.get_prompt(name, arguments)).messages

    async def resources(self):
        return [str(it.uri) for it in await self.pages("list_resources", "resources")]

    async def templates(self):
        found = await self.pages("list_resource_templates", "resource_templates")
        return [it.uri_template for it in found]

    async def read(self, uri):
        return (await self.client.read_resource(uri)).contents

    async def complete_prompt(self, name, argument, value, context=None):
        ref = self.types.PromptReference(type="ref/prompt", name=name)
        result = await self.client.complete(ref, {"name": argument, "value": value}, context)
        return result.completion.values

    async def complete_template(self, uri, argument, value):
        ref = self.types.ResourceTemplateReference(type="ref/resource", uri=uri)
        result = await self.client.complete(ref, {"name": argument, "value": value})
        return result.completion.values

    async def level(self, level):
        await self.client.set_logging_level(level)

    @asynccontextmanager
    async def listening(self):
        if not self.modern:
            yield
            return
        async with self.client.listen(tools_list_changed=True) as subscription:

            async def hear():
                async for event in subscription:
                    if "Tools" in type(event).__name__:
                        change.set()

            task = asyncio.create_task(hear())
            try:
                yield
            finally:
                task.cancel()


class Old(Sdk):
    """The SDK that most clients in the field are built on."""

    @asynccontextmanager
    async def open(self):
        import mcp
        import mcp.types as types
        from mcp.client.sse import sse_client
        from mcp.client.stdio import stdio_client
        from mcp.client.streamable_http import streamablehttp_client

        self.types = types

        async def sample(context, params):
            content = types.TextContent(type="text", text=f"yes to {params.messages[0].content.text}")
            return types.CreateMessageResult(role="assistant", content=content, model="none")

        async def elicit(context, params):
            return types.ElicitResult(action="accept", content={"name": "Ada"})

        async def roots(context):
            return types.ListRootsResult(roots=[types.Root(uri="file:///interop")])

        async def message(it):
            told(it)

        if target.startswith("stdio:"):
            transport = stdio_client(self.server(mcp))
        elif target.endswith("/sse"):
            transport = sse_client(target)
        else:
            transport = streamablehttp_client(target)
        async with (
            transport as streams,
            mcp.ClientSession(
                streams[0],
                streams[1],
                sampling_callback=sample,
                elicitation_callback=elicit,
                list_roots_callback=roots,
                logging_callback=on_log,
                message_handler=message,
            ) as self.client,
        ):
            yield (await self.client.initialize()).protocolVersion

    async def pages(self, method, field):
        names = {"resource_templates": "resourceTemplates"}
        found, cursor = [], None
        while True:
            page = await getattr(self.client, method)(cursor)
            found += getattr(page, names.get(field, field))
            cursor = page.nextCursor
            if cursor is None:
                return found

    async def tools(self):
        return [tool.name for tool in await self.pages("list_tools", "tools")]

    async def templates(self):
        found = await self.pages("list_resource_templates", "resource_templates")
        return [it.uriTemplate for it in found]


class Fast(Sdk):
    """fastmcp, whose client has methods of its own."""

    @asynccontextmanager
    async def open(self):
        import fastmcp
        import mcp
        import mcp_types as types
        from fastmcp.client.transports import StdioTransport

        self.types = types

        async def sample(messages, params, context):
            text = messages[0].content
            return f"yes to {(text[0] if isinstance(text, list) else text).text}"

        async def elicit(message, response_type, params, context):
            return {"name": "Ada"}

        async def message(it):
            told(it)

        server = self.server(mcp)
        if not isinstance(server, str):
            server = StdioTransport(server.command, server.args)
        async with fastmcp.Client(
            server,
            mode=mode,
            sampling_handler=sample,
            elicitation_handler=elicit,
            roots=["file:///interop"],
            log_handler=on_log,
            message_handler=message,
            timeout=LIMIT,
        ) as self.client:
            version = self.client.session.protocol_version
            self.modern = version >= "2026"
            yield version

    async def call(self, name, arguments, progress=None):
        meta = {"io.modelcontextprotocol/logLevel": "info"} if self.modern else None
        return await self.client.call_tool_mcp(name, arguments, progress_handler=progress, meta=meta)

    async def tools(self):
        return [tool.name for tool in await self.client.list_tools()]

    async def prompts(self):
        return [prompt.name for prompt in await self.client.list_prompts()]

    async def prompt(self, name, arguments):
        return (await self.client.get_prompt(name, arguments)).messages

    async def resources(self):
        return [str(it.uri) for it in await self.client.list_resources()]

    async def templates(self):
        return [it.uri_template for it in await self.client.list_resource_templates()]

    async def read(self, uri):
        return await self.client.read_resource(uri)

    async def complete_prompt(self, name, argument, value, context=None):
        ref = self.types.PromptReference(type="ref/prompt", name=name)
        argument = {"name": argument, "value": value}
        return (await self.client.complete(ref, argument, context_arguments=context)).values

    async def complete_template(self, uri, argument, value):
        ref = self.types.ResourceTemplateReference(type="ref/resource", uri=uri)
        return (await self.client.complete(ref, {"name": argument, "value": value})).values

    @asynccontextmanager
    async def listening(self):
        if not self.modern:
            yield
            return
        from mcp.client.subscriptions import listen

        async with listen(self.client.session, tools_list_changed=True) as subscription:

            async def hear():
                async for event in subscription:
                    if "Tools" in type(event).__name__:
                        change.set()

            task = asyncio.create_task(hear())
            try:
                yield
            finally:
                task.cancel()


def text_of(result) -> str:
    text = "\n".join(getattr(part, "text", "") for part in result.content)
    failed = result.isError if kind == "old" else result.is_error
    assert not failed, f"the tool failed: {text}"
    return text


def has(text: str, expected: str) -> None:
    assert expected in text, f"`{expected}` is not in `{text}`"


async def tools(client):
    names = await client.tools()
    assert {"everything__echo", "local__echo"} <= set(names), names
    assert len(names) == len(set(names)), f"a name is listed twice: {names}"
    has(text_of(await client.call("everything__get-sum", {"a": 2, "b": 40})), "42")
    has(text_of(await client.call("local__echo", {"message": "hé"})), "hé")


async def progress(client):
    for server in ("everything", "local"):
        steps = []

        async def step(progress, total=None, message=None, steps=steps):
            steps.append(progress)

        name = f"{server}__trigger-long-running-operation"
        result = await client.call(name, {"duration": 0.4, "steps": 4}, step)
        has(text_of(result), "completed")
        await asyncio.sleep(0.1)
        assert steps == [1, 2, 3, 4], f"{server}: {steps}"


async def prompts(client):
    names = await client.prompts()
    assert {"everything__simple-prompt", "local__simple-prompt", "shared__greeting"} <= set(names), names
    has((await client.prompt("local__simple-prompt", None))[0].content.text, "simple prompt")
    arguments = {"city": "Köln", "state": "NRW"}
    has((await client.prompt("everything__args-prompt", arguments))[0].content.text, "Köln, NRW")
    arguments = {"resourceType": "Text", "resourceId": "3"}
    embedded = (await client.prompt("everything__resource-prompt", arguments))[1].content.resource
    has(embedded.text, "Resource 3")


async def resources(client):
    uris = await client.resources()
    assert len(uris) == len(set(uris)), f"an address is listed twice: {uris}"
    for server in ("everything", "local"):
        uri = next((u for u in uris if f"/{server}/" in u and "features.md" in u), None)
        assert uri, f"nothing of {server} in {uris}"
        contents = await client.read(uri)
        has(contents[0].text, "Everything")
    own = next((u for u in uris if "old" in u and "readme" in u and "shared" in u), "old://readme")
    has((await client.read(own))[0].text, "read me")


async def templates(client):
    found = await client.templates()
    for server in ("everything", "local"):
        of = [t for t in found if f"/{server}/" in t and "dynamic/text" in t]
        assert of, f"nothing of {server} in {found}"
        uri = of[0].replace("{resourceId}", "7")
        has((await client.read(uri))[0].text, "Resource 7")


async def completion(client):
    name = "everything__completable-prompt"
    values = await client.complete_prompt(name, "department", "S")
    assert values == ["Sales", "Support"], values
    values = await client.complete_prompt(name, "name", "", {"department": "Sales"})
    assert values == ["David", "Eve", "Frank"], values
    template = next(t for t in await client.templates() if "/local/" in t and "dynamic/text" in t)
    values = await client.complete_template(template, "resourceId", "7")
    assert values == ["7"], values


async def logging(client):
    if not client.modern:
        await client.level("info")
    has(text_of(await client.call("shared__steps", {"count": 1})), "1 steps")
    await asyncio.sleep(0.1)
    assert "info begun" in logged, logged


async def cancel(client):
    task = asyncio.create_task(client.call("shared__wait", {"name": mark}))
    await asyncio.sleep(0.5)
    assert not task.done(), task
    if client.modern:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    else:
        await cancelled_by_notice(client)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    for _ in range(50):
        text = text_of(await client.call("shared__was_cancelled", {}))
        if mark in text:
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"the server was never told: {text}")


async def cancelled_by_notice(client):
    """Leaving the call is enough for the SDK of today; the old one says it only when told to."""
    if kind != "old":
        return
    session = client.client
    notice = client.types.CancelledNotification(
        method="notifications/cancelled",
        params=client.types.CancelledNotificationParams(requestId=session._request_id - 1),
    )
    await session.send_notification(client.types.ClientNotification(notice))


async def changes(client):
    for server in ("shared", "new"):
        async with client.listening():
            change.clear()
            name = f"{server[0]}{mark}"
            await asyncio.sleep(0.2)
            has(text_of(await client.call(f"{server}__grow", {"name": name})), "grown")
            while f"{server}__{name}" not in await client.tools():
                # Others make changes too.
                try:
                    await asyncio.wait_for(change.wait(), 8)
                except TimeoutError:
                    problem = f"no list_changed because of {server}; heard {heard}"
                    raise AssertionError(problem) from None
                change.clear()


async def sampling(client):
    result = await client.call("asker__ask_model", {"question": "tea?"})
    has(text_of(result), "the model says yes to tea?")


async def elicitation(client):
    has(text_of(await client.call("asker__ask_person", {})), "accept Ada")


async def elicitation_modern(client):
    has(text_of(await client.call("new__ask_person", {})), "accept Ada")


async def roots(client):
    has(text_of(await client.call("asker__ask_roots", {})), "file:///interop")


async def refusal(client):
    """A server of the handshake era asks in the middle of a call, where a modern client cannot be."""
    result = await client.call("asker__ask_model", {"question": "tea?"})
    assert result.is_error, result
    has(result.content[0].text, "does not offer")


async def sse(client):
    for server in ("sse", "sse-found"):
        has(text_of(await client.call(f"{server}__add", {"a": 2, "b": 40})), "42")


async def main() -> None:
    client = {"mcp": Sdk, "old": Old, "fastmcp": Fast}[kind]()
    failed = []
    async with client.open() as version:
        for name in sys.argv[4:]:
            try:
                async with asyncio.timeout(LIMIT):
                    await globals()[name.replace("-", "_")](client)
            except Exception:
                failed.append(name)
                print(f"--- {name}", traceback.format_exc(limit=-4), sep="\n")
    if failed:
        sys.exit(f"protocol {version}, failed: {' '.join(failed)}")
    print(f"protocol {version}, {len(sys.argv) - 4} scenes")


asyncio.run(main())
