"""How fast and how large: each part of the method against its plain formulation, alternately within one process."""
