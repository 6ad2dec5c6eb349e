"""A server made with the official Python SDK of today. It speaks both eras, and modern clients are
asked by a result that wants input.

    server_new.py PORT
"""

import sys
from typing import Annotated

from mcp.server.mcpserver import Context, Elicit, MCPServer, Resolve
from pydantic import BaseModel

server = MCPServer("new", log_level="WARNING")


class Person(BaseModel):
    name: str


async def person() -> Elicit[Person]:
    return Elicit("Who are you?", Person)


@server.tool()
async def add(a: int, b: int) -> str:
    return str(a + b)


@server.tool()
async def ask_person(who: Annotated[Person, Resolve(person)]) -> str:
    return f"accept {who.name}"


@server.tool()
async def steps(count: int, ctx: Context) -> str:
    await ctx.info("begun")
    for number in range(1, count + 1):
        await ctx.report_progress(number, count, f"step {number}")
    return f"{count} steps"


@server.tool()
async def grow(name: str, ctx: Context) -> str:
    server.add_tool(lambda: "grown", name=name, description="made at run time")
    await ctx.notify_tools_changed()
    return "grown"


@server.prompt()
def greeting(name: str) -> str:
    return f"Greet {name}"


@server.resource("new://readme")
def readme() -> str:
    return "read me"


server.run("streamable-http", port=int(sys.argv[1]))
