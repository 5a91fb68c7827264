"""The HTTP contract: parameters, response schemas, and errors as problem details."""
