#!/bin/sh
# build-uml.sh DIR PACKAGE CONFIG
# Builds user-mode Linux with virtual time from Debian's kernel source, the
# package PACKAGE (linux-source-6.1, linux-source-6.12), and leaves it as
# DIR/usr/bin/linux.uml. Needs apt, gcc, make, flex, bison, bc and xz.
set -eu
dir=$1 pkg=$2 config=$3
work=$(mktemp -d "$dir/build.XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work"
apt-get -q -o Acquire::http::Timeout=20 -o Acquire::Retries=1 download "$pkg" >&2
dpkg-deb --fsys-tarfile "$pkg"_*.deb | tar -x --wildcards "./usr/src/$pkg.tar.xz"
# Of the largest drivers only Kconfig and Makefile are needed.
tar -xf "usr/src/$pkg.tar.xz" --exclude='*/Documentation/*.rst' --exclude='*/drivers/gpu/drm/*.[ch]' \
	--exclude='*/drivers/net/ethernet/*.[ch]' --exclude='*/drivers/net/wireless/*.[ch]' \
	--exclude='*/drivers/media/*.[ch]' --exclude='*/sound/*.[ch]' --exclude='*/tools/testing/*'
cd "$pkg"
make -s ARCH=um KCONFIG_ALLCONFIG="$config" allnoconfig >&2
missing=$(sed -n 's/^\(CONFIG_[A-Z0-9_]*=y\)$/\1/p' "$config" | grep -vxFf .config || true)
[ -z "$missing" ] || echo "build-uml.sh: not available:" $missing >&2
make -s ARCH=um -j"$(nproc)" linux >&2
mkdir -p "$dir/usr/bin"
mv linux "$dir/usr/bin/linux.uml"
