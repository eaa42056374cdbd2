"""A playground and an HTTP endpoint: equal seeds side by side, previews of the steps, votes.

- `models`: what is served side by side: a pipeline with a plan each, of a model or of the run of `q-sched`.
- `worker`: one thread that draws, and a queue that refuses.
- `requests`: what a client may ask for, checked.
- `votes`: comparisons that were shown, and the file that `fewstep align --pairs` reads.
- `app`: the routes, as a Starlette application (extra `ui`).
"""
