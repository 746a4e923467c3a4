#!/bin/sh
# In a sidecar without cron and logrotate: rotate.sh /var/log/nginx/access.log & in its start script.
# Packs a log that has grown beyond BYTES, and keeps KEEP of them. nginx need not be told, whoever its parent is: the log
# is copied and then emptied, so what nginx writes between the two is lost; it is a millisecond a rotation.
log=$1
bytes=${BYTES:-10000000}
keep=${KEEP:-14}
while sleep "${EVERY:-60}"; do
    [ -f "$log" ] && [ "$(wc -c <"$log")" -gt "$bytes" ] || continue
    number=$keep
    while [ "$number" -gt 1 ]; do
        older=$((number - 1))
        [ ! -f "$log.$older.gz" ] || mv "$log.$older.gz" "$log.$number.gz"
        number=$older
    done
    cp -p "$log" "$log.new" && : >"$log" && gzip -f "$log.new" && mv "$log.new.gz" "$log.1.gz"
done
