#!/usr/bin/env bash
# Installs vgg-edge as a service on 64-bit Raspberry Pi OS, Bookworm or Trixie. `--help` tells the rest.
set -euo pipefail

usage() {
    cat <<'USAGE'
usage: sudo deploy/install.sh [--dry-run] [--picamera2] [--extras LIST] [--from PATH]
       sudo deploy/install.sh --uninstall [--dry-run]

Puts the program into /opt/vgg-edge, its settings and token into /etc/vgg-edge, models and pictures into
/var/lib/vgg-edge, and starts vgg-edge.service. Running it again upgrades; settings, token and --picamera2 stay.

  --dry-run            print every command and change nothing
  --picamera2          for a camera on the ribbon cable: Debian's picamera2, and the numpy that it was built for
  --extras LIST        what comes with it (default: litert,camera,web)
  --from PATH          a clone or a wheel (default: the clone this script is in)
  --uninstall          remove all but /var/lib/vgg-edge
  --os-release FILE    take FILE for /etc/os-release, and
  --architecture NAME  NAME for what dpkg says: to see what another machine would get
USAGE
}

main() {
    dry_run='' picamera2='' uninstall='' architecture='' os_release=/etc/os-release
    extras=litert,camera,web
    here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
    from=$(dirname "$here")
    while [ $# -gt 0 ]; do
        case $1 in
            --dry-run) dry_run=yes ;;
            --picamera2) picamera2=yes ;;
            --uninstall) uninstall=yes ;;
            --extras | --from | --os-release | --architecture)
                [ $# -gt 1 ] || fail "$1 needs a value; --help lists the options"
                case $1 in
                    --extras) extras=$2 ;;
                    --from) from=$2 ;;
                    --os-release) os_release=$2 ;;
                    --architecture) architecture=$2 ;;
                esac
                shift
                ;;
            -h | --help) usage && exit ;;
            *) fail "there is no option $1; --help lists them" ;;
        esac
        shift
    done
    [ -n "$dry_run" ] || [ "$(id -u)" = 0 ] || fail "only root can do this: sudo $0, or --dry-run to see what it would do"
    if [ -n "$uninstall" ]; then
        remove
    else
        refuse_other_systems
        install_all
    fi
}

fail() {
    echo "error: $*" >&2
    exit 2
}

# Every change goes through here.
run() {
    local word
    if [ -z "$dry_run" ]; then
        "$@"
        return
    fi
    printf '+'
    for word in "$@"; do
        if [[ $word =~ ^[a-zA-Z0-9_./:,=-]+$ ]]; then printf ' %s' "$word"; else printf ' %s' "${word@Q}"; fi
    done
    printf '\n'
}

refuse_other_systems() {
    local codename
    [ -r "$os_release" ] || fail "$os_release cannot be read: this script is for Raspberry Pi OS"
    # shellcheck disable=SC1090 # a file of assignments, meant to be read by a shell
    codename=$(. "$os_release" && echo "${VERSION_CODENAME:-${PRETTY_NAME:-an unknown system}}")
    # A 64-bit kernel under 32-bit programs is common: dpkg knows, uname does not.
    architecture=${architecture:-$(dpkg --print-architecture)}
    case $architecture in
        arm64) ;;
        armhf | armel) fail "32-bit system ($architecture): LiteRT and ONNX Runtime have no wheels for it. With Bookworm's" \
            "Python 3.11, pip install '.[tflite]' classifies files; for the service, install 64-bit Raspberry Pi OS" ;;
        *) fail "$architecture is not a 64-bit Raspberry Pi: there, pip install '.[$extras]' and python -m runtime.serve" ;;
    esac
    case $codename in
        bookworm | trixie) ;;
        *) fail "$codename is not supported: this script is for Raspberry Pi OS Bookworm and Trixie" ;;
    esac
    if [ ! -f "$from" ] && [ ! -f "$from/pyproject.toml" ]; then
        fail "$from is neither a wheel nor a clone of vgg-edge: give one with --from"
    fi
}

install_all() {
    local constraint=() site=() missing=() source=$from package
    # Made anew without Debian's packages, the environment would lose the picamera2 of an earlier run.
    if grep -qsx 'include-system-site-packages = true' /opt/vgg-edge/pyvenv.cfg; then picamera2=yes; fi
    for package in python3-venv ${picamera2:+python3-picamera2}; do
        dpkg-query --show --showformat '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
    done
    if [ ${#missing[@]} -gt 0 ]; then
        run apt-get update
        run apt-get install -y --no-install-recommends "${missing[@]}"
    fi
    getent passwd vgg-edge >/dev/null ||
        run useradd --system --user-group --home-dir /var/lib/vgg-edge --shell /usr/sbin/nologin vgg-edge

    if [ -n "$picamera2" ]; then
        # picamera2 comes from Debian alone, with parts built for Debian's numpy: pip must not bring another.
        site=(--system-site-packages)
        constraint=(--constraint /etc/vgg-edge/constraints.txt)
    fi
    run install -d -m 755 /etc/vgg-edge
    [ -z "$picamera2" ] || run sh -c "/usr/bin/python3 -c 'import numpy; print(\"numpy==\" + numpy.__version__)' \
>/etc/vgg-edge/constraints.txt"
    # After an upgrade of the system the old environment has no Python any more.
    if [ -e /opt/vgg-edge ] && ! /opt/vgg-edge/bin/python -c '' 2>/dev/null; then run rm -rf /opt/vgg-edge; fi
    run /usr/bin/python3 -m venv "${site[@]}" /opt/vgg-edge
    if [ -d "$from" ]; then
        # Built from a copy: root's build would leave files in the clone that its owner cannot remove.
        source=/opt/vgg-edge/source
        run rm -rf "$source"
        run mkdir "$source"
        run cp -r "$from"/{pyproject.toml,README.md,LICENSE,train,export,runtime} "$source"
        run install -d "$source/models"
        run cp -r "$from/models/flowers" "$source/models"
    fi
    run /opt/vgg-edge/bin/python -m pip install --upgrade "${constraint[@]}" "${source}[$extras]"
    if [ -f "$from" ]; then
        # pip leaves what is installed when a wheel has the same version, whatever is in it.
        run /opt/vgg-edge/bin/python -m pip install --force-reinstall --no-deps "$from"
    else
        run rm -rf "$source"
    fi

    # Under its name once it is whole: an interrupted run must not leave an empty one.
    if [ ! -s /etc/vgg-edge/token ]; then
        run sh -c 'umask 077 && /usr/bin/python3 -c "import secrets; print(secrets.token_urlsafe(24))" >/etc/vgg-edge/token.new'
        run mv /etc/vgg-edge/token.new /etc/vgg-edge/token
    fi
    [ -e /etc/vgg-edge/serve.conf ] || run install -m 644 "$here/serve.conf" /etc/vgg-edge/serve.conf
    run install -m 644 "$here/vgg-edge.service" /etc/systemd/system/vgg-edge.service
    run systemctl daemon-reload
    run systemctl enable vgg-edge.service
    run systemctl restart vgg-edge.service ||
        fail "vgg-edge.service did not start: journalctl -u vgg-edge tells why"
    [ -n "$dry_run" ] || cat <<'DONE'
vgg-edge.service runs: http://127.0.0.1:8080 on this machine, settings in /etc/vgg-edge/serve.conf, and
  sudo cat /etc/vgg-edge/token    what the page asks for
  journalctl -u vgg-edge -f       what it says
DONE
}

remove() {
    if [ -e /etc/systemd/system/vgg-edge.service ]; then
        run systemctl stop vgg-edge.service
        run systemctl disable vgg-edge.service
    fi
    run rm -rf /etc/systemd/system/vgg-edge.service /opt/vgg-edge /etc/vgg-edge /var/cache/vgg-edge
    run systemctl daemon-reload
    if getent passwd vgg-edge >/dev/null; then run userdel vgg-edge; fi
    if [ -e /var/lib/vgg-edge ]; then
        echo "kept: /var/lib/vgg-edge, its models and pictures; sudo rm -r /var/lib/vgg-edge removes them"
    fi
}

main "$@"
