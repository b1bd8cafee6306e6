"""etcd's services, one module each: requests of the wire to requests of the store, results back.

A service is a class over a `Node`, with `methods()`: its handlers, by their paths on the wire.
"""
