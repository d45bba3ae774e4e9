"""The process that holds the listening sockets and keeps generations alive; no client byte here."""
