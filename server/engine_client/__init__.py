"""The engines, as an API process uses them: links to them, routing of jobs, slots."""
