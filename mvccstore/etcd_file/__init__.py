"""etcd's database file: what `etcdctl snapshot save` writes, and `etcdutl snapshot restore` makes an etcd of.

* `bbolt`: the file format, pages and trees; it knows nothing of etcd.
* `buckets`: what etcd keeps in which bucket, and how each record is encoded.
* `writer`, `reader`: a store to a file, and a file to records.

What the bytes mean to a store or to a server is theirs to know.
"""

from __future__ import annotations

from mvccstore.etcd_file.buckets import AlarmRecord, AuthRecords, ClusterRecords, LeaseRecord, MemberRecord
from mvccstore.etcd_file.reader import EtcdFile, EtcdFileStatus, read_etcd_file
from mvccstore.etcd_file.writer import write_database_file, write_etcd_file

__all__ = [
    "AlarmRecord",
    "AuthRecords",
    "ClusterRecords",
    "EtcdFile",
    "EtcdFileStatus",
    "LeaseRecord",
    "MemberRecord",
    "read_etcd_file",
    "write_database_file",
    "write_etcd_file",
]
