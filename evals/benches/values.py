"""Python values as JSON and back, which keeps tuples, lists and sets apart on the way out of a sandbox.

The two functions depend on nothing else: their source is put into the programs that run there.
"""


def encode(value: object) -> object:
    """JSON data for a value. Equal values of one type have equal codes, whatever the order of a set or a dict.

    Any other object stays as it is, and the sandbox refuses to write it.
    """
    import json

    def key(code: object) -> object:  # {True} == {1} == {1.0}
        return int(code) if isinstance(code, bool) or (isinstance(code, float) and code.is_integer()) else code

    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return {"int": hex(value)} if value.bit_length() > 8000 else value  # JSON's digits are limited
    if isinstance(value, list):
        return [encode(one) for one in value]
    if isinstance(value, tuple):
        return {"tuple": [encode(one) for one in value]}
    if isinstance(value, set | frozenset):
        return {"set": sorted((key(encode(one)) for one in value), key=json.dumps)}
    if isinstance(value, dict):
        pairs = [[key(encode(name)), encode(one)] for name, one in value.items()]
        return {"dict": sorted(pairs, key=lambda pair: json.dumps(pair[0]))}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    return value


def decode(code: object) -> object:
    """The value of a code. Raises ValueError or TypeError for what `encode` does not write."""
    if isinstance(code, list):
        return [decode(one) for one in code]
    if not isinstance(code, dict):
        return code
    ((kind, body),) = code.items()
    if kind == "int":
        return int(body, 16)
    if kind == "tuple":
        return tuple(decode(one) for one in body)
    if kind == "set":
        return {frozenset(one) if isinstance(one, set) else one for one in map(decode, body)}
    if kind == "dict":
        return {decode(name): decode(one) for name, one in body}
    if kind == "complex":
        return complex(*body)
    if kind == "bytes":
        return bytes.fromhex(body)
    raise ValueError(f"no code for a value: {kind}")
