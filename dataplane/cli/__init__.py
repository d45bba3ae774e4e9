"""One file for each group of verbs; decides nothing, talks to the supervisor."""
