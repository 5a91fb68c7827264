"""The engines as the API process uses them: processes, supervision, routing of jobs, slots."""
