"""The real etcd that answers are compared with: which one, how it is built, how it is started.

`choice` says which (`find_oracle`), `build` makes the newest one from its Go module, `process` starts one.
main.go, go.mod and go.sum are the program that is built; `python -m tests.oracle.build` builds it ahead of time.
"""
