"""What a server tells of itself at `/metrics`, under the names that etcd's dashboards and alerts read.

    tally        integers that the services count up as they work
    families     each metric: its name, type and help as etcd has them, and where its value comes from
    page         the page itself; the only module that needs `prometheus_client`, imported with the first scrape

Nothing of `prometheus_client` is touched by a call: a scrape reads the integers.
"""
