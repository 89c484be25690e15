"""``minilora serve keys add | list | revoke``: who may ask a server that runs or will run.

A key is shown once, when it is added; the file has only its hash. A server that uses the file sees
a change with the next request.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import time
from pathlib import Path
from typing import Any

from ..text import columns
from .options import check_folder

EPILOG = """examples:
  minilora serve keys add me --admin                     may load adapters, sees /metrics
  minilora serve keys add acme --adapter naval --requests 60 --tokens 20000 --concurrent 4
  minilora serve keys list
  minilora serve keys revoke 5f0c2a9d41be                its id, or the whole key"""


def add_keys(actions: Any) -> None:
    """Add ``keys`` to the sub-commands of ``minilora serve``."""
    purpose = "who may ask: add, list, revoke keys"
    form = argparse.RawDescriptionHelpFormatter
    parser = actions.add_parser(
        "keys", help=purpose, description=purpose, epilog=EPILOG, formatter_class=form
    )
    made = parser.add_subparsers(dest="keys_action", metavar="add | list | revoke", required=True)
    add_key_options(made.add_parser("add", help="a new key, shown this once", formatter_class=form))
    made.add_parser("list", help="all keys, without their secrets")
    revoke = made.add_parser("revoke", help="end a key; requests in progress go on")
    revoke.add_argument("key", help="its id as in the list, or the whole key")
    for each in made.choices.values():
        add_state_option(each)


def add_state_option(parser: argparse.ArgumentParser) -> None:
    """``--state``: the folder of the server's own files."""
    about = "folder of the server's keys and logs (default: %(default)s)"
    parser.add_argument("--state", type=Path, default=Path("server"), help=about)


def warning_of(host: str, state: Path) -> str:
    """What to say where others can reach a server that asks nobody for a key; else empty.

    >>> warning_of("127.0.0.1", Path("server"))
    ''
    """
    from ..serving.refusals import Refused
    from ..serving.tenants import Tenants

    if host in ("127.0.0.1", "::1", "localhost"):
        return ""
    with Tenants(state / "keys.sqlite") as tenants, contextlib.suppress(Refused):
        tenants.who(None)  # refused once there is a key
        return (
            f"warning: whoever reaches {host} may do everything until a key is added:\n"
            f"  minilora serve keys add NAME --admin --state {state}      see SECURITY.md"
        )
    return ""


def add_key_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``minilora serve keys add``."""
    add = parser.add_argument
    add("tenant", help="whose key: letters, digits, '.', '_', '-'")
    each = "an adapter it may use, '*' for all; repeatable; replaces what the tenant had"
    add("--adapter", action="append", metavar="NAME", help=each)
    add("--admin", action="store_true", help="may use, load and see everything")
    kept = "(default: as it was, or any number; 'any' lifts it)"
    add("--requests", type=limit, metavar="N", help=f"a minute {kept}")
    add("--tokens", type=limit, metavar="N", help=f"a minute, prompts and answers together {kept}")
    add("--concurrent", type=limit, metavar="N", help=f"requests at once {kept}")
    add("--days", type=float, metavar="N", help="until the key expires (default: never)")


def limit(text: str) -> float:
    """A limit's number; ``any`` for none.

    >>> limit("60"), limit("any")
    (60.0, inf)
    """
    with contextlib.suppress(ValueError):
        number = math.inf if text == "any" else float(text)
        if number > -math.inf:  # nor nan
            return number
    raise argparse.ArgumentTypeError(f"expected a number, or any, got {text!r}")


def run_keys(options: argparse.Namespace) -> int:
    """``minilora serve keys``. Raises ``ValueError``."""
    from ..serving.tenants import Tenants

    check_folder(options.state, "--state")
    path = options.state / "keys.sqlite"
    with Tenants(path) as tenants:
        ACTIONS[options.keys_action](tenants, options)
    return 0


def add_key(tenants: Any, options: argparse.Namespace) -> None:
    """``minilora serve keys add``."""
    others = [row for row in tenants.all_keys() if row.tenant == options.tenant]
    given = {name: getattr(options, name) for name in ("requests", "tokens", "concurrent")}
    chosen: dict[str, Any] = {
        name: None if n == math.inf else n for name, n in given.items() if n is not None
    }
    if (concurrent := chosen.get("concurrent")) is not None:
        chosen["concurrent"] = whole(concurrent)
    first = not tenants.all_keys()
    key = tenants.add(
        options.tenant, options.adapter, chosen or None, admin=options.admin, days=options.days
    )
    row = next(each for each in tenants.all_keys() if each.id == key.split("-")[1])
    print(key)
    print(f"the key of {row.tenant}: {described(row)}. It is not shown again.")
    if live := [each for each in others if each.revoked is None]:
        print(f"Rights and limits are the tenant's: its {len(live) + 1} keys share them.")
    if first:
        print("From now on this server answers nobody without a key.")
        if not row.admin:
            print(
                "Nobody may load adapters or read /metrics yet: minilora serve keys add me --admin"
            )
    print('Clients send it: OpenAI(base_url="http://localhost:8000/v1", api_key="ml-…")')


def whole(number: float) -> int:
    """A number of requests. Raises ``ValueError`` on a fraction."""
    if number != int(number):
        raise ValueError(f"concurrent: expected a whole number, got {number:g}")
    return int(number)


def list_keys(tenants: Any, options: argparse.Namespace) -> None:
    """``minilora serve keys list``."""
    rows = [(row.id, row.tenant, described(row)) for row in tenants.all_keys()]
    if rows:
        print("\n".join(columns(rows)))
    else:
        print("No key yet: everybody is the tenant local and may do everything.")
        print("The first one:  minilora serve keys add me --admin")


def revoke_key(tenants: Any, options: argparse.Namespace) -> None:
    """``minilora serve keys revoke``."""
    row = tenants.revoke(options.key)
    print(f"revoked {row.id} of {row.tenant}; what it asked before goes on to its end")
    valid = [each for each in tenants.all_keys() if each.revoked is None]
    if not valid:
        print("No valid key is left, and the server answers nobody until one is added.")


def described(row: Any) -> str:
    """What a key is good for, and until when.

    >>> from minilora.serving.tenants import KeyRow, Limits
    >>> described(KeyRow("0", "acme", False, ("naval",), Limits(60), 0.0, None, None))
    'the base, naval; 60 requests a minute'
    """
    adapters = "everything, as an admin" if row.admin else ", ".join(["the base", *row.adapters])
    limits = row.limits
    quotas = [
        ("{:g} requests a minute", limits.requests),
        ("{:g} tokens a minute", limits.tokens),
        ("{:g} at once", limits.concurrent),
    ]
    parts = [adapters, *(text.format(value) for text, value in quotas if value is not None)]
    if row.revoked is not None:
        parts.append(f"revoked {date(row.revoked)}")
    elif row.expires is not None:
        over = row.expires <= time.time()
        parts.append(f"{'expired' if over else 'until'} {date(row.expires)}")
    return "; ".join(parts)


def date(seconds: float) -> str:
    """A time as people write it here."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


ACTIONS = {"add": add_key, "list": list_keys, "revoke": revoke_key}
