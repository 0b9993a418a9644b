"""Following a network: which of its channels can be cut, and what its parts cost.

`trace` does it: on a `working_copy`, in which attention that a network writes out is made of layers
(`written_attention`, `window_attention`) and which must compute what the network does (`alike`).
`coupling` sends labels through one run, by the rules of `label_rules`, and finds channels that go
together; `trial` cuts every such group and compares it with a `blinded` network.
"""
