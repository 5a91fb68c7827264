"""Studies of the method: what the paper claims, measured again. Nothing of it is shipped."""
