"""The API process's side of the engines: their processes, supervision, routing, and the slots that they share."""
