"""The rules, without I/O: what a command changes and what a read sees.

Everything here works on the transactions of `mvccstore.tables` and is the same for every engine. Nothing
here waits, locks, or asks for the time.
"""
