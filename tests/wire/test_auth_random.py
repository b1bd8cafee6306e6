"""Random scripts against etcd with authentication on: users, roles, permissions, and every RPC as every user."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from hypothesis import settings

from mvccstore.server.messages import rpc
from tests.wire.auth_calls import (
    ENABLED,
    ROOT,
    auth_status,
    authenticate,
    change_password,
    disable,
    enable,
    grant_permission,
    grant_role,
    revoke_permission,
    revoke_role,
    role_add,
    role_delete,
    role_get,
    role_list,
    running_auth_pair,
    showing,
    showing_text,
    user_add,
    user_add_without_password,
    user_delete,
    user_get,
    user_list,
)
from tests.wire.calls import (
    alarm,
    alive,
    compact,
    create,
    delete,
    delete_op,
    downgrade,
    get,
    get_op,
    grant,
    hash_kv,
    keep_alive,
    leases,
    maintenance,
    members,
    put,
    put_op,
    revoke,
    status,
    time_to_live,
    txn,
    watching,
)
from tests.wire.differential import Streaming, Take, Unary
from tests.wire.pair import NEEDS_ORACLE

pytestmark = NEEDS_ORACLE
STEPS = 400
NAMES = ("root", "amy", "bob", "eve", "none")
ROLES = ("r", "s", "t", "root", "x")
KEYS = (b"a", b"b", b"bb", b"c", b"d", b"k\0", b"m", b"\xff", b"\0")
ENDS = (b"", b"", b"b", b"c", b"d", b"m", b"\xff", b"\0")
LEASES = (1, 2, 3, 404)
WORDS = ("one", "two")


class Script:
    """Draws operations. `tokens` is how many the servers have given."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.tokens = ROOT

    def keys(self) -> tuple[bytes, bytes]:
        """Draw a range that does not end before it begins: what etcd says of others depends on its tree."""
        key, end = self.random.choice(KEYS), self.random.choice(ENDS)
        return (key, end) if not end or end == b"\0" or key <= end else (end, key)

    def one_of_the_accounts(self) -> Unary:
        pick = self.random.choice
        name, role, word, (key, end) = pick(NAMES), pick(ROLES), pick(WORDS), self.keys()
        return pick(
            (
                *(
                    user_add(name, word),
                    user_add_without_password(name),
                    user_delete(name),
                    change_password(name, word),
                ),
                *(grant_role(name, role), grant_role(name, role), grant_role(name, role), revoke_role(name, role)),
                *(role_add(role), role_add(role), role_delete(role), role_get(role), user_get(name), user_list()),
                *(grant_permission(role, self.random.randrange(3), key, end) for _ in range(4)),
                *(revoke_permission(role, key, end), role_list(), auth_status(), disable()),
            )
        )

    def one_of_the_keys(self, depth: int = 1) -> rpc.RequestOp:
        (key, end), flag = self.keys(), self.random.random() < 0.2
        kind = self.random.randrange(4 if depth else 3)
        if kind == 3:
            branches = [[self.one_of_the_keys(depth - 1) for _ in range(self.random.randrange(2))] for _ in range(2)]
            return rpc.RequestOp(request_txn=rpc.TxnRequest(success=branches[0], failure=branches[1]))
        if kind == 2:
            return delete_op(key, end)
        if kind == 1:
            return get_op(key, range_end=end)
        return put_op(key, prev_kv=flag, lease=self.random.choice((0, 0, *LEASES)))

    def one_of_the_rest(self) -> Unary | Streaming:
        pick = self.random.choice
        (key, end), lease, flag = self.keys(), pick(LEASES), self.random.random() < 0.3
        operations = [self.one_of_the_keys() for _ in range(self.random.randrange(3))]
        compares = [rpc.Compare(key=key, range_end=end)] if flag else []
        return pick(
            (
                *(get(key, end), get(key, end), get(key, serializable=flag), put(key, prev_kv=flag)),
                *(put(key, lease=lease), put(key, lease=lease), delete(key, end, prev_kv=flag), delete(key)),
                *(txn(*operations[:1], failure=operations[1:], compare=compares), txn(*operations, compare=compares)),
                *(grant(600, lease), revoke(lease), time_to_live(lease), time_to_live(lease, keys=False), leases()),
                *(keep_alive(alive(lease), Take(1)), watching(create(key, end), Take(1)), compact(2), hash_kv()),
                *(status(), members(), alarm(), alarm(0, 1), downgrade(0, "3.5"), downgrade(0, "x")),
                *(maintenance("Hash", rpc.HashRequest()), maintenance("Defragment", rpc.DefragmentRequest())),
            )
        )

    def shown(self, operation: Unary | Streaming) -> Unary | Streaming:
        """Show a token, or none, or one that is none."""
        draw = self.random.random()
        if draw < 0.08:
            return operation
        if draw < 0.12:
            return showing_text("no.1", operation)
        return showing(self.random.randint(max(1, self.tokens - 3), self.tokens), operation)


@pytest.mark.parametrize("seed", range(3 if settings().max_examples < 1_000 else 40))
def test_random_scripts(tmp_path: Path, seed: int) -> None:
    script = Script(seed)
    accepted = 0
    with running_auth_pair(tmp_path / "pair") as pair:

        def token_of(name: str, word: str) -> int:
            (answer,) = pair.play(authenticate(name, word))
            script.tokens += "ok" in answer
            return script.tokens

        pair.play(*ENABLED)
        root = ROOT
        for _ in range(STEPS):
            draw = script.random.random()
            if draw < 0.5:
                accepted += "error" not in pair.play(script.shown(script.one_of_the_rest()))[0]
            elif draw < 0.55:
                pair.play(script.shown(script.one_of_the_accounts()))
            elif draw < 0.8:
                pair.play(showing(root, script.one_of_the_accounts()))
            elif draw < 0.88:
                pair.play(showing(root, script.one_of_the_rest()))
            else:
                name = script.random.choice(NAMES[1:])
                for word in WORDS:
                    token_of(name, word)
            (state,) = pair.play(showing(root, auth_status()))
            if not state.get("ok", {}).get("enabled"):
                # It is off, or root has another password now.
                pair.play(showing(root, disable()), enable())
                for word in ("pw", *WORDS):
                    root = token_of("root", word)
        pair.play(showing(root, get(b"\0", b"\0")), showing(root, leases()), showing(root, user_list()))
    assert accepted > STEPS // 16
