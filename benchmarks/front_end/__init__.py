"""`make bench-front-end`: what the HTTP front end costs, beside a model of next to no cost."""
