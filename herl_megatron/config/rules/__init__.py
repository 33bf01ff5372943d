"""Every rule that one key's type cannot hold, in the module that is called like the key's in
`config.schema`.

A rule is a generator of problems, each with the keys, their values and the fix. `problems` of a
module are the rules between keys, and between keys and the machine; `shape_problems` those between
keys and a model's `config.json`; what looks at files has a name of its own. `config.validate`
composes them.
"""
