#!/bin/sh
# In a sidecar without cron and logrotate: rotate.sh /var/log/nginx/access.log & in its start script.
# Packs a log that has grown beyond BYTES, and keeps KEEP of them. nginx need not be told, whoever its parent is: the log
# is copied and then emptied, so what nginx writes between the two is lost; it is a millisecond a rotation.
log=$1
bytes=${BYTES:-10000000}
keep=${KEEP:-14}

# what was copied, also before the disk was full or this was stopped
pack() {
    [ ! -f "$log.new" ] || gzip -f "$log.new" || return
    [ -f "$log.new.gz" ] || return 0
    number=1
    while [ "$number" -lt "$keep" ] && [ -f "$log.$number.gz" ]; do
        number=$((number + 1))
    done
    while [ "$number" -gt 1 ]; do
        newer=$((number - 1))
        mv "$log.$newer.gz" "$log.$number.gz" || return
        number=$newer
    done
    mv "$log.new.gz" "$log.1.gz"
}

while sleep "${EVERY:-60}"; do
    pack || continue
    [ -f "$log" ] && [ "$(wc -c <"$log")" -gt "$bytes" ] || continue
    if cp -p "$log" "$log.new" && true >"$log"; then
        pack
    else
        rm -f "$log.new"
    fi
done
