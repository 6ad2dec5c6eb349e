#!/usr/bin/env python3
"""Writes the dashboards from `boards/`.

    grafana/generate.py            writes overview.json, server.json and audit.json
    grafana/generate.py --check    says whether they are up to date
"""

import json
import pathlib
import sys

sys.dont_write_bytecode = True  # the folder stays as it was checked out

from boards import audit, overview, server  # noqa: E402

HERE = pathlib.Path(__file__).resolve().parent


def main():
    check = sys.argv[1:] == ["--check"]
    if sys.argv[1:] and not check:
        sys.exit(__doc__)
    stale = []
    for name, board in (("overview", overview), ("server", server), ("audit", audit)):
        path = HERE / f"{name}.json"
        text = json.dumps(board.board().json(), indent=2, ensure_ascii=False) + "\n"
        if check and (not path.exists() or path.read_text() != text):
            stale.append(path.name)
        elif not check:
            path.write_text(text)
    if stale:
        sys.exit(f"{', '.join(stale)}: not what grafana/generate.py writes; run it")


if __name__ == "__main__":
    main()
