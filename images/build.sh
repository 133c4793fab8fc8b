#!/usr/bin/env bash
# Builds a pod image that needs no registry: `images/build.sh pody-base [--force]`.
#
# The root filesystem comes from the machine's own package mirror (the suite the
# machine runs), so it works wherever `apt-get` works. Nothing is built if the
# image exists and was built from the same inputs; see README.md.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

die() {
    printf 'error: %s\n' "$1" >&2
    [ $# -lt 2 ] || printf 'hint: %s\n' "$2" >&2
    exit 1
}

# One-line apt sources of the host's own distribution and suite. `indextargets`
# reads both of apt's source formats; backports and foreign archives are left out.
# A `mirror+file:` list exists only on the host, so its first mirror is taken.
host_apt_sources() {
    local uri release components list
    # shellcheck disable=SC2016  # $(…) is apt's format language
    apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT) $(ORIGIN) $(CODENAME) $(CREATED_BY)' |
        awk -v codename="$VERSION_CODENAME" '
            $6 == "Packages" && ($4 == "Debian" || $4 == "Ubuntu") && index($5, codename) == 1 &&
            $2 !~ /backports|proposed/ && $3 ~ /^(main|universe)$/ {
                if (!($1 " " $2 in components)) order[++n] = $1 " " $2
                components[$1 " " $2] = components[$1 " " $2] " " $3
            }
            END { for (i = 1; i <= n; i++) print order[i] components[order[i]] }' |
        while read -r uri release components; do
            case $uri in
            mirror+file:*)
                list=${uri#mirror+file:}
                uri=$(awk '!/^#/ && NF { print $1; exit }' "${list%/}")
                ;;
            esac
            printf 'deb [signed-by=/usr/share/keyrings/%s-archive-keyring.gpg] %s %s %s\n' \
                "$ID" "$uri" "$release" "$components"
        done
}

# What a rebuild depends on: this script, the shared files, the image's own files
# and the suite.
content_hash() {
    {
        find "$here/build.sh" "$here/common" "$here/$image" -type f -print0 | LC_ALL=C sort -z |
            xargs -0 sha256sum | sed "s#$here/##"
        printf '%s\n' "$VERSION_CODENAME"
    } | sha256sum | cut -d' ' -f1
}

image=
force=
for argument in "$@"; do
    case $argument in
    --force) force=yes ;;
    -*) die "unknown option $argument" "usage: images/build.sh IMAGE [--force]" ;;
    *) image=$argument ;;
    esac
done
[ -n "$image" ] || die "no image named" "usage: images/build.sh pody-base [--force]"
[ -f "$here/$image/packages" ] ||
    die "$image is not an image that can be built here" "images that need a registry are built with docker build; see images/README.md"
[ "$(id -u)" = 0 ] || die "building an image needs root" "run it with sudo"
command -v mmdebstrap >/dev/null || die "mmdebstrap is missing" "apt-get install mmdebstrap"

# shellcheck source=/dev/null
. /etc/os-release
tag=$image:latest
hash=$(content_hash)
built_from=$(docker image inspect --format '{{index .Config.Labels "pody.content-hash"}}' "$tag" 2>/dev/null || true)
if [ "$built_from" = "$hash" ] && [ -z "$force" ]; then
    echo "$tag is up to date"
    exit 0
fi

previous=$(docker image inspect --format '{{.Id}}' "$tag" 2>/dev/null || true)

sources=$(host_apt_sources)
[ -n "$sources" ] ||
    die "apt lists no $ID $VERSION_CODENAME archive on this machine" "check /etc/apt/sources.list* and run apt-get update"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# The host's setting for stale release files applies in the image too (frozen mirrors);
# its proxy is used for the build only, because it may contain a password.
apt-config dump | grep -E '^Acquire::(Check-Valid-Until|Check-Date) ' >"$work/apt.conf" || true
apt-config dump | grep -E '^Acquire::https?::Proxy ' >"$work/proxy.conf" || true

# shellcheck disable=SC2016  # "$1" is the new root, given to the hook by mmdebstrap
mmdebstrap --quiet --mode=root --format=tar --variant=minbase \
    --include="$(paste -sd, "$here/$image/packages")" \
    --dpkgopt='force-unsafe-io' \
    --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    --setup-hook='mkdir -p "$1/etc/apt/apt.conf.d"' \
    --setup-hook="upload $work/apt.conf /etc/apt/apt.conf.d/90host" \
    --setup-hook="upload $work/proxy.conf /etc/apt/apt.conf.d/91build-proxy" \
    --customize-hook='rm "$1/etc/apt/apt.conf.d/91build-proxy"' \
    --customize-hook='rm -f "$1"/etc/ssh/ssh_host_*' \
    --customize-hook="upload $here/common/pody-entrypoint /usr/local/sbin/pody-entrypoint" \
    --customize-hook="upload $here/common/sshd_config /etc/ssh/sshd_config.d/pody.conf" \
    --customize-hook="upload $here/common/profile.sh /etc/profile.d/pody.sh" \
    --customize-hook='chmod 0755 "$1/usr/local/sbin/pody-entrypoint"' \
    "$VERSION_CODENAME" "$work/rootfs.tar" - <<<"$sources"

docker import \
    --change 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8' \
    --change 'WORKDIR /root' \
    --change 'EXPOSE 22' \
    --change 'CMD ["/usr/local/sbin/pody-entrypoint"]' \
    --change "LABEL pody.image=$image pody.content-hash=$hash" \
    --message "built by images/build.sh" \
    "$work/rootfs.tar" "$tag" >/dev/null
# The image that had the name is removed, unless a tag or a pod still uses it.
if [ -n "$previous" ] && [ "$(docker image inspect --format '{{len .RepoTags}}' "$previous" 2>/dev/null)" = 0 ]; then
    docker image rm "$previous" >/dev/null 2>&1 || true
fi
echo "$tag built"
