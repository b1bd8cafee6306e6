"""Who may do what: users, roles, and how a call shows whose it is.

    permissions    ranges of keys, merged, and whether they cover a request
    records        users and roles as they are stored
    accounts       all users and roles, and the rules by which they change
    passwords      bcrypt, beside the loop
    tokens         what a call shows; `json_web_tokens` for those that are signed
    certificates   the name in a client's certificate
    gate           what services ask: whose call this is, and whether it may

While authentication is off, which it is until it is enabled, none of this costs a call more than looking at a flag.
"""
