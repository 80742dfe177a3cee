#!/bin/sh
# build-root.sh IMAGE
# Makes an ext4 file system of a small Debian with systemd, udev, D-Bus, logind,
# networkd (which is not enabled) and the ordinary user "user" (1000). Needs apt,
# mmdebstrap and mke2fs.
set -eu
export IMAGE="$1"
export FINISH='
chroot "$1" useradd --create-home --uid 1000 user
chroot "$1" systemd-machine-id-setup
echo vifshape-test >"$1/etc/hostname"

# What no test asks for takes time at every boot: what would start by itself, what
# looks for units to make, which also does so at every daemon-reload, and the events
# of 600 terminals.
chroot "$1" systemctl --quiet mask getty.target systemd-timesyncd.service systemd-networkd-wait-online.service \
	apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer
mkdir "$1/etc/systemd/system-generators" "$1/etc/systemd/system/systemd-udev-trigger.service.d"
for g in "$1"/lib/systemd/system-generators/*; do ln -s /dev/null "$1/etc/systemd/system-generators/${g##*/}"; done
cat >"$1/etc/systemd/system/systemd-udev-trigger.service.d/quick.conf" <<EOF
[Service]
ExecStart=
ExecStart=udevadm trigger --type=devices --action=add --subsystem-nomatch=tty
EOF

# The image is made in here, where the owners of files are right without root, too; of
# what is mounted on /vm, that is all but /proc and /sys.
rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/*
mkdir "$1/vm"
mount --bind "$1" "$1/vm"
mke2fs -q -t ext4 -O ^has_journal -d "$1/vm" "$IMAGE" 1G
umount "$1/vm"
'
# mmdebstrap does not read the host's own settings of apt.
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Codename: bookworm' 'Component: main' | head -n 1)
eval "$(apt-config shell proxy Acquire::http::Proxy)"
exec mmdebstrap --quiet --variant=minbase --format=null \
	--include=systemd-sysv,udev,dbus,dbus-user-session,libpam-systemd,iproute2 \
	--aptopt='Acquire::http::Timeout "20"' --aptopt='Acquire::Retries "1"' ${proxy:+--aptopt="Acquire::http::Proxy \"$proxy\""} \
	--dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
	--customize-hook='sh -euc "$FINISH" finish "$1"' bookworm /dev/null ${mirror:+"$mirror"} >&2
