"""Lists and calls tools with the official Python client.

    client.py URL MODE [TOOL ARGUMENTS EXPECTED]...

MODE is the client's own: `auto` (asks `server/discover` first), `legacy` (handshake) or a protocol
version. Each TOOL must be listed; its result's text must contain EXPECTED.
"""

import asyncio
import json
import sys

from mcp import Client


async def main(url: str, mode: str, calls: list[str]) -> None:
    async with Client(url, mode=mode) as client:
        names: list[str] = []
        cursor = None
        while True:
            page = await client.list_tools(cursor=cursor)
            names += [tool.name for tool in page.tools]
            cursor = page.next_cursor
            if cursor is None:
                break
        assert len(names) == len(set(names)), f"a name is listed twice: {names}"
        for tool, arguments, expected in zip(calls[0::3], calls[1::3], calls[2::3], strict=True):
            assert tool in names, f"{tool} is not listed, but {names}"
            result = await client.call_tool(tool, json.loads(arguments))
            text = "\n".join(getattr(part, "text", "") for part in result.content)
            assert not result.is_error, f"{tool}: {text}"
            assert expected in text, f"{tool}: `{expected}` is not in `{text}`"
        print(f"protocol {client.protocol_version}, {len(names)} tools, {len(calls) // 3} calls")


asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
