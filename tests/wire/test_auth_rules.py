"""Users, roles and permissions, and who may change them: etcd and ours answer alike."""

from __future__ import annotations

from base64 import b64encode

import pytest

from mvccstore.server.messages import rpc
from tests.wire.auth_calls import (
    AUTH,
    ENABLED,
    READ,
    READWRITE,
    ROOT,
    WRITE,
    as_root,
    auth_status,
    authenticate,
    call,
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
    showing,
    showing_text,
    user_add,
    user_add_without_password,
    user_delete,
    user_get,
    user_list,
)
from tests.wire.calls import everything, get, judge, put, text
from tests.wire.differential import Case, Post, Unary
from tests.wire.pair import NEEDS_ORACLE, Pair

pytestmark = NEEDS_ORACLE
HASH = b64encode(b"$2a$04$O13TBCyhGSDM/5D.5LQ22.DwKTWEPl7TaJDTmwb1uXTA0TfE.hTtG").decode()
LONG = "n" * 300


RULES = (
    Case(
        "users",
        (
            *(
                user_list(),
                user_add("bob", "b"),
                user_add("bob", "c"),
                user_add("", "b"),
                user_add("amy"),
                auth_status(),
            ),
            *(user_get("bob"), user_get("none"), user_get(""), user_list(), user_delete("none"), user_delete("")),
            *(user_delete("bob"), user_get("bob"), user_list(), user_add("bob"), user_get("bob"), auth_status()),
            *(user_add("with/slash"), user_add("ü\0 \n"), user_add(LONG), user_get(LONG), user_add(LONG), user_list()),
            *(user_delete(LONG), user_list(), auth_status(), everything()),
        ),
    ),
    Case(
        "passwords",
        (
            *(
                change_password("none", "x"),
                change_password("", "x"),
                user_add("bob", "p" * 72),
                user_add("c", "p" * 73),
            ),
            *(change_password("bob", "p" * 73), change_password("bob", "ü" * 36), change_password("bob", "ü" * 37)),
            *(change_password("bob"), change_password("bob", hashed="!"), change_password("bob", hashed=HASH)),
            *(change_password("bob", hashed=HASH[:-1]), change_password("bob", hashed="\r\n".join(HASH))),
            *(user_add_without_password("key"), user_add_without_password("key2", "pw"), change_password("key", "x")),
            *(
                change_password("key", hashed="!"),
                user_add("h", hashedPassword=HASH),
                user_add("i", hashedPassword="!"),
            ),
            *(user_add_without_password("", "p" * 73), auth_status(), user_list()),
            *ENABLED,
            *(
                authenticate(name, word)
                for name in ("key", "key2", "bob", "h", "i")
                for word in ("", "x", "pw", "secret")
            ),
            *(authenticate("root", "wrong"), authenticate("none", "x"), authenticate(""), authenticate("root")),
            *as_root(change_password("bob", "p" * 72)),
            *(authenticate("bob", "p" * 72), authenticate("bob", "p" * 73), authenticate("bob", "p" * 71)),
        ),
    ),
    Case(
        "roles",
        (
            *(role_list(), role_add("r"), role_add("r"), role_add(""), role_get("r"), role_get("none"), role_get("")),
            *(
                role_get("root"),
                role_add("root"),
                role_get("root"),
                role_list(),
                role_delete("none"),
                role_delete("root"),
            ),
            *(role_get("root"), role_add("a"), role_add("ü/\n"), role_add(LONG), role_list(), role_get(LONG)),
            *(role_delete(LONG), role_list(), auth_status(), grant_permission("root", READ, b"a"), everything()),
            *(role_add("root"), grant_permission("root", READ, b"a"), role_get("root"), auth_status()),
        ),
    ),
    Case(
        "roles of users",
        (
            *(
                user_add("bob"),
                role_add("r"),
                role_add("a"),
                role_add("z"),
                grant_role("none", "r"),
                grant_role("bob", "x"),
            ),
            *(
                grant_role("bob", ""),
                grant_role("", "r"),
                grant_role("bob", "z"),
                grant_role("bob", "a"),
                user_get("bob"),
            ),
            *(auth_status(), grant_role("bob", "a"), auth_status(), grant_role("bob", "root"), user_get("bob")),
            *(revoke_role("bob", "x"), revoke_role("none", "a"), revoke_role("bob", "z"), user_get("bob")),
            *(
                revoke_role("bob", "z"),
                revoke_role("bob", "root"),
                auth_status(),
                user_add("amy"),
                grant_role("amy", "a"),
            ),
            *(role_delete("a"), user_get("bob"), user_get("amy"), auth_status(), grant_role("bob", "a")),
            *(role_add("root"), grant_role("amy", "root"), role_delete("root"), user_get("amy"), auth_status()),
        ),
    ),
    Case(
        "permissions",
        (
            *(grant_permission("r", READ, b"a"), role_add("r")),
            call("RoleGrantPermission", rpc.AuthRoleGrantPermissionRequest(name="r")),
            call("RoleGrantPermission", rpc.AuthRoleGrantPermissionRequest(name="none")),
            *(
                grant_permission("r", READ, b""),
                grant_permission("r", READ, b"", b"b"),
                grant_permission("r", READ, b"", b"\0"),
            ),
            *(
                grant_permission("r", READ, b"b", b"a"),
                grant_permission("r", READ, b"b", b"b"),
                grant_permission("x", READ, b""),
            ),
            *(
                grant_permission("r", WRITE, b"m"),
                grant_permission("r", READ, b"a", b"c"),
                grant_permission("r", READ, b"a"),
            ),
            *(grant_permission("r", WRITE, b"a", b"d"), role_get("r"), grant_permission("r", READWRITE, b"a", b"d")),
            *(role_get("r"), grant_permission("r", READWRITE, b"a", b"c"), grant_permission("r", READ, b"a", b"c")),
            *(role_get("r"), grant_permission("r", READ, b"\0", b"\0"), grant_permission("r", READ, b"z", b"\0")),
            *(grant_permission("r", 7, b"k"), grant_permission("r", -1, b"j"), role_get("r"), auth_status()),
            *(revoke_permission("none", b"a"), revoke_permission("r", b"x"), revoke_permission("r", b"a", b"x")),
            *(revoke_permission("r", b"a", b"d"), role_get("r"), revoke_permission("r", b"a"), role_get("r")),
            *(revoke_permission("r", b""), revoke_permission("r", b"z", b"\0"), role_get("r"), auth_status()),
        ),
    ),
    Case(
        "on and off",
        (
            *(
                auth_status(),
                disable(),
                auth_status(),
                enable(),
                authenticate("root", "x"),
                user_add("root", "pw"),
                enable(),
            ),
            *(role_add("root"), enable(), grant_role("root", "root"), auth_status(), enable(), auth_status(), enable()),
            *(disable(), authenticate("root", "pw"), *as_root(auth_status(), enable(), auth_status())),
            *as_root(user_delete("root"), role_delete("root"), revoke_role("root", "root"), user_add("bob", "b")),
            *as_root(revoke_role("bob", "root"), user_delete("none"), revoke_role("root", "none"), disable()),
            *(auth_status(), authenticate("root", "pw"), *as_root(auth_status(), get(b"a")), enable()),
            *(showing(ROOT, get(b"a")), disable(), authenticate("root", "pw"), showing(2, disable()), disable()),
            *(revoke_role("root", "root"), enable(), user_delete("root"), enable(), role_delete("root"), auth_status()),
        ),
    ),
    Case(
        "users see themselves and their roles",
        (
            *(
                role_add("r"),
                grant_permission("r", READ, b"a"),
                role_add("s"),
                user_add("bob", "b"),
                grant_role("bob", "r"),
            ),
            *(*ENABLED, authenticate("bob", "b")),
            *(showing(2, one) for one in (user_get("bob"), user_get("root"), user_get("none"), user_get(""))),
            *(
                showing(2, one)
                for one in (role_get("r"), role_get("s"), role_get("none"), role_get("root"), role_get(""))
            ),
            *(user_get("bob"), user_get(""), role_get("r"), user_get("none")),
            *(showing(2, one) for one in (user_list(), role_list(), auth_status(), enable(), disable())),
            *(showing_text("nonsense", one) for one in (user_get("bob"), role_get("r"), auth_status(), user_add("x"))),
            *as_root(user_get("bob"), role_get("r"), role_get("root"), user_list(), role_list(), user_get("")),
            *(*as_root(user_delete("bob")), showing(2, user_get("bob"))),
        ),
    ),
    Case(
        "who may change users and roles",
        (
            *(role_add("r"), user_add("bob", "b"), grant_role("bob", "r"), *ENABLED, authenticate("bob", "b")),
            *(
                shown
                for one in (
                    *(
                        user_add("x", "y"),
                        user_add(""),
                        user_add("", "p" * 73),
                        change_password("bob", "p" * 73),
                        user_add("bob"),
                        user_add_without_password("x"),
                        user_delete("bob"),
                    ),
                    *(
                        user_delete("root"),
                        change_password("bob", "c"),
                        change_password("bob"),
                        grant_role("bob", "root"),
                    ),
                    *(revoke_role("bob", "r"), role_add("x"), role_add(""), role_delete("r"), role_delete("root")),
                    *(
                        grant_permission("r", READ, b"a"),
                        grant_permission("r", READ, b""),
                        revoke_permission("r", b"a"),
                    ),
                    *(user_list(), role_list(), auth_status(), enable(), disable()),
                )
                for shown in (
                    one,
                    showing(2, one),
                    showing_text("no.1", one),
                    showing_text("Bearer x", one, "authorization"),
                )
            ),
            *as_root(auth_status(), user_get("bob"), role_get("r"), user_list(), role_list()),
        ),
    ),
    Case(
        "tokens end with what they stand for",
        (
            *(*ENABLED, *as_root(user_add("bob", "b")), authenticate("bob", "b"), authenticate("bob", "b")),
            *(showing(2, user_get("bob")), showing(3, user_get("bob")), *as_root(grant_role("bob", "root"))),
            *(showing(2, get(b"a")), *as_root(revoke_role("bob", "root")), showing(2, get(b"a"))),
            *(
                *as_root(change_password("bob", "c")),
                showing(2, get(b"a")),
                showing(3, get(b"a")),
                authenticate("bob", "b"),
            ),
            *(authenticate("bob", "c"), showing(4, user_get("bob")), *as_root(user_delete("bob"))),
            *(showing(4, user_get("bob")), *as_root(user_add("bob", "c")), showing(4, user_get("bob"))),
            *(*as_root(change_password("root", "x")), showing(ROOT, auth_status()), authenticate("root", "pw")),
            *(authenticate("root", "x"), showing(5, auth_status()), showing(5, disable()), user_add("amy")),
            *(enable(), showing(5, auth_status()), authenticate("root", "x"), showing(6, auth_status())),
        ),
    ),
    Case(
        "where a token is shown",
        (
            *ENABLED,
            Unary(
                f"{AUTH}/UserList", rpc.AuthUserListRequest(), lambda names: [("authorization", names.value("token"))]
            ),
            Unary(
                f"{AUTH}/UserList",
                rpc.AuthUserListRequest(),
                lambda names: [("authorization", f"Bearer {names.value('token')}")],
            ),
            Unary(
                f"{AUTH}/UserList",
                rpc.AuthUserListRequest(),
                lambda names: [("token", f"Bearer {names.value('token')}")],
            ),
            Unary(
                f"{AUTH}/UserList",
                rpc.AuthUserListRequest(),
                lambda names: [("authorization", f"bearer {names.value('token')}")],
            ),
            Unary(
                f"{AUTH}/UserList",
                rpc.AuthUserListRequest(),
                lambda names: [("token", "no.1"), ("authorization", names.value("token"))],
            ),
            Unary(
                f"{AUTH}/UserList",
                rpc.AuthUserListRequest(),
                lambda names: [("token", names.value("token")), ("token", "x"), ("authorization", "no")],
            ),
            Unary(f"{AUTH}/UserList", rpc.AuthUserListRequest(), [("token", "")]),
            Unary(f"{AUTH}/UserList", rpc.AuthUserListRequest(), [("authorization", "Bearer")]),
            *(showing_text(shown, user_list()) for shown in ("x", "x.y", "x.1", "x.-1", ".1", "1.", "x.1.2", "a b.1")),
            *(
                Post("/v3/auth/user/list", {}, headers)
                for headers in (None, {"Authorization": "x.1"}, {"token": "x.1"})
            ),
            Post("/v3/auth/user/list", {}, lambda names: {"Authorization": names.value("token")}),
            Post("/v3/auth/user/list", {}, lambda names: {"Authorization": f"Bearer {names.value('token')}"}),
            Post("/v3/auth/user/list", {}, lambda names: {"Grpc-Metadata-Token": names.value("token")}),
            Post("/v3/auth/user/list", {}, lambda names: {"Token": names.value("token")}),
        ),
    ),
    Case(
        "through JSON",
        (
            Post("/v3/auth/user/add", {"name": "root", "password": "pw"}),
            Post("/v3/auth/user/add", {"name": "bob", "options": {"no_password": True}}),
            Post("/v3/auth/user/add", {"name": "bob"}),
            Post("/v3/auth/role/add", {"name": "r"}),
            Post("/v3/auth/role/grant", {"name": "r", "perm": {"permType": "READ", "key": text(b"a")}}),
            Post(
                "/v3/auth/role/grant",
                {"name": "r", "perm": {"permType": 2, "key": text(b"b"), "range_end": text(b"c")}},
            ),
            Post("/v3/auth/role/grant", {"name": "r"}),
            *(Post("/v3/auth/role/get", {"role": "r"}), Post("/v3/auth/role/list"), Post("/v3/auth/user/list")),
            Post("/v3/auth/user/grant", {"user": "root", "role": "root"}),
            Post("/v3/auth/user/grant", {"user": "bob", "role": "r"}),
            *(
                Post("/v3/auth/user/get", {"name": "bob"}),
                Post("/v3/auth/user/changepw", {"name": "bob", "password": "x"}),
            ),
            Post("/v3/auth/authenticate", {"name": "root", "password": "pw"}),
            *(Post("/v3/auth/enable"), Post("/v3/auth/status"), Post("/v3/auth/authenticate", {"name": "bob"})),
            Post("/v3/auth/authenticate", {"name": "root", "password": "no"}),
            Post("/v3/auth/authenticate", {"name": "root", "password": "pw"}),
            *as_root(
                Post("/v3/auth/status"),
                Post("/v3/auth/role/revoke", {"role": "r", "key": text(b"a")}),
                Post("/v3/auth/user/revoke", {"name": "bob", "role": "r"}),
                Post("/v3/auth/role/delete", {"role": "r"}),
                Post("/v3/auth/user/delete", {"name": "bob"}),
                Post("/v3/kv/put", {"key": text(b"a"), "value": text(b"b")}),
                Post("/v3/auth/disable"),
            ),
            put(b"a"),
        ),
    ),
)


@pytest.mark.parametrize("case", RULES, ids=str)
def test_rules(auth_pair: Pair, case: Case) -> None:
    judge(auth_pair, case)
