#!/usr/bin/env bash
# Installs vgg-edge as a service on 64-bit Raspberry Pi OS, Bookworm or Trixie. See --help.
set -euo pipefail

usage() {
    cat <<'USAGE'
usage: sudo deploy/install.sh [--picamera2] [--extras LIST] [--from PATH]
       deploy/install.sh --dry-run [other options]
       sudo deploy/install.sh --uninstall

Installs the program in /opt/vgg-edge, its settings and token in /etc/vgg-edge, and starts vgg-edge.service.
The packages have the versions and hashes of requirements.lock, beside this script. The service's models are in
/var/lib/vgg-edge/models, its pictures and corrections in /var/lib/vgg-edge/state. Run the script again to
upgrade: it keeps the settings, the token, --picamera2 and --extras.

  --dry-run            print every command and change nothing; works on any Linux machine, without root
  --picamera2          support the ribbon-cable camera: installs Debian's picamera2 and keeps Debian's numpy
  --extras LIST        optional packages to install, of litert, onnx, camera, mqtt, web, heic and verify
                       (default: those of the last time, or litert,camera,web)
  --from PATH          a clone or a wheel to install (default: the clone that holds this script)
  --uninstall          remove program, settings and token; keep /var/lib/vgg-edge, and the user if it owns files
  --os-release FILE    act as on the system that FILE (a copy of /etc/os-release) describes
  --architecture NAME  act as if dpkg reported the architecture NAME
USAGE
}

main() {
    umask 022 # the service must be able to read the program, and nobody else may write it
    dry_run='' picamera2='' uninstall='' architecture='' os_release=''
    extras=$(cat /etc/vgg-edge/extras 2>/dev/null) || true
    extras=${extras:-litert,camera,web}
    here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
    from=$(dirname "$here")
    while [ $# -gt 0 ]; do
        case $1 in
            --dry-run) dry_run=yes ;;
            --picamera2) picamera2=yes ;;
            --uninstall) uninstall=yes ;;
            --extras | --from | --os-release | --architecture)
                [ $# -gt 1 ] || fail "$1 needs a value: see --help"
                case $1 in
                    --extras) extras=$2 ;;
                    --from) from=$2 ;;
                    --os-release) os_release=$2 ;;
                    --architecture) architecture=$2 ;;
                esac
                shift
                ;;
            -h | --help) usage && exit ;;
            *) fail "unknown option $1: see --help" ;;
        esac
        shift
    done
    [ -n "$dry_run" ] || [ "$(id -u)" = 0 ] || fail "root is required: sudo $0, or --dry-run to print the commands"
    check_program_folder
    if [ -n "$uninstall" ]; then
        remove
        return
    fi
    check_system
    check_source
    install_packages
    install_program
    install_settings
    install_folders
    start_service
    [ -n "$dry_run" ] || print_next_steps
}

fail() {
    echo "error: $*" >&2
    exit 2
}

# Runs a command, or prints it with --dry-run. Every change to the machine goes through this function.
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

# The script deletes this folder, which may be a clone.
check_program_folder() {
    [ ! -e /opt/vgg-edge ] || [ -e /opt/vgg-edge/pyvenv.cfg ] || [ -z "$(ls -A /opt/vgg-edge)" ] ||
        fail "/opt/vgg-edge has files that this script did not install: move them to another folder, run this again"
}

check_system() {
    local reason
    reason=$(unsupported_reason)
    [ -n "$reason" ] || return 0
    # A dry run on a PC shows the commands for a Pi, unless the options name the system to act as.
    if [ -z "$dry_run" ] || [ -n "$os_release$architecture" ]; then fail "$reason"; fi
    echo "note: $reason. These are the commands for 64-bit Raspberry Pi OS:" >&2
}

# Prints why this system is not supported, or nothing.
unsupported_reason() {
    local codename machine file=${os_release:-/etc/os-release}
    # shellcheck disable=SC1090 # os-release files are made to be sourced
    codename=$([ -r "$file" ] && . "$file" && echo "${VERSION_CODENAME:-${PRETTY_NAME:-}}") || true
    # 32-bit programs often run on a 64-bit kernel; dpkg reports the programs, uname reports the kernel.
    machine=${architecture:-$(dpkg --print-architecture 2>/dev/null || uname -m)}
    case $machine in
        arm64) ;;
        armhf | armel)
            echo "this is a 32-bit system ($machine), and LiteRT and ONNX Runtime have no wheels for it:" \
                "install 64-bit Raspberry Pi OS, or use pip install '.[tflite]' with Bookworm's Python 3.11 for files only"
            return
            ;;
        *)
            echo "$machine is not a 64-bit Raspberry Pi: on this machine, run pip install '.[$extras]' and" \
                "python -m runtime.serve"
            return
            ;;
    esac
    case $codename in
        bookworm | trixie) ;;
        *) echo "${codename:-this system} is not supported: use Raspberry Pi OS Bookworm or Trixie" ;;
    esac
}

check_source() {
    local extra
    [ -f "$from" ] || [ -f "$from/pyproject.toml" ] || fail "$from is neither a wheel nor a clone of vgg-edge: see --from"
    extras=${extras//[[:space:]]/}
    [ -n "$extras" ] || fail "--extras is empty: see --help"
    for extra in ${extras//,/ }; do
        case $extra in
            litert | onnx | camera | mqtt | web | heic | verify) ;;
            *) fail "--extras: $extra is unknown: choose from litert, onnx, camera, mqtt, web, heic and verify, separated by commas" ;;
        esac
    done
}

# Debian's packages and the user of the service.
install_packages() {
    local package missing=()
    # An earlier --picamera2 stays in effect: without Debian's packages the environment would lose picamera2.
    if grep -qsx 'include-system-site-packages = true' /opt/vgg-edge/pyvenv.cfg; then picamera2=yes; fi
    for package in python3-venv ${picamera2:+python3-picamera2}; do
        dpkg-query --show --showformat '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
    done
    if [ ${#missing[@]} -gt 0 ]; then
        run apt-get update
        run apt-get install -y --no-install-recommends "${missing[@]}"
    fi
    getent passwd vgg-edge >/dev/null ||
        run useradd --system --user-group --home-dir /var/lib/vgg-edge/state --shell /usr/sbin/nologin vgg-edge
}

# The virtual environment in /opt/vgg-edge. -I keeps Python from importing modules from the current folder.
install_program() {
    local site=() source=$from select
    # The lines of the lock file end with the extras that need the package.
    select="grep -wE \"# (.* )?(base|build|${extras//,/|})\" \"$here/requirements.lock\""
    if [ -n "$picamera2" ]; then
        # Debian's picamera2 is built for Debian's numpy: pip must not install another.
        site=(--system-site-packages)
        select+=" | grep -v ^numpy=="
    fi
    # An upgrade of the system may remove the Python that the environment was made with. pip keeps packages of the
    # right version, also those that another umask left writable for other users, or hidden from the service.
    if [ -e /opt/vgg-edge ] && { [ -n "$(wrong_modes)" ] || ! /opt/vgg-edge/bin/python -I -c '' 2>/dev/null; }; then
        run rm -rf /opt/vgg-edge
    fi
    run /usr/bin/python3 -I -m venv "${site[@]}" /opt/vgg-edge
    # An earlier installation without --picamera2 has another numpy.
    if [ -n "$picamera2" ]; then run /opt/vgg-edge/bin/python -I -m pip uninstall --yes numpy; fi
    run bash -c "$select >/opt/vgg-edge/requirements.txt"
    run /opt/vgg-edge/bin/python -I -m pip install --require-hashes --no-deps --only-binary :all: \
        --requirement /opt/vgg-edge/requirements.txt
    if [ -d "$from" ]; then
        # A build by root would leave files in the clone that its owner cannot remove, so build from a copy.
        source=/opt/vgg-edge/source
        run rm -rf "$source"
        run mkdir "$source"
        run cp -r "$from"/{pyproject.toml,README.md,LICENSE,train,export,runtime} "$source"
        run install -d "$source/models"
        run cp -r "$from/models/flowers" "$source/models"
    fi
    # Also where the same version is installed: its content may differ.
    run /opt/vgg-edge/bin/python -I -m pip install --force-reinstall --no-deps --no-build-isolation "$source"
    if [ -d "$from" ]; then run rm -rf "$source"; fi
}

# Prints a file of the program that other users may write, or that the service cannot read.
wrong_modes() {
    find /opt/vgg-edge -not -type l \( -perm /022 -o -not -perm -004 -o -type d -not -perm -001 \) -print -quit
}

# The token and the settings, unless they exist.
install_settings() {
    run install -d -m 755 /etc/vgg-edge
    run sh -c "echo $extras >/etc/vgg-edge/extras"
    # Renamed when it is complete: an interrupted run must not leave an empty token.
    if [ ! -s /etc/vgg-edge/token ]; then
        run sh -c 'umask 077 && /usr/bin/python3 -I -c "import secrets; print(secrets.token_urlsafe(24))" >/etc/vgg-edge/token.new'
        run mv /etc/vgg-edge/token.new /etc/vgg-edge/token
    fi
    # It may hold the password of a camera.
    if [ -e /etc/vgg-edge/serve.conf ]; then
        run chmod 600 /etc/vgg-edge/serve.conf
    else
        run install -m 600 "$here/serve.conf" /etc/vgg-edge/serve.conf
    fi
}

# The folders of models, which the service may not write. In an earlier version all belonged to its user.
install_folders() {
    run install -d -m 755 -o root -g root /var/lib/vgg-edge
    # Its user could link to any folder there: root would open that one, such as /root, to all users.
    [ ! -L /var/lib/vgg-edge/models ] ||
        fail "/var/lib/vgg-edge/models is a link: remove it, copy the models into a folder of this name, run this again"
    run install -d -m 755 -o root -g root /var/lib/vgg-edge/models
    run chown -R --no-dereference root:root /var/lib/vgg-edge/models
    run chmod -R u=rwX,go=rX /var/lib/vgg-edge/models
}

start_service() {
    run install -m 644 "$here/vgg-edge.service" /etc/systemd/system/vgg-edge.service
    run systemctl daemon-reload
    run systemctl enable vgg-edge.service
    run systemctl restart vgg-edge.service || fail "vgg-edge.service did not start: run journalctl -u vgg-edge"
}

print_next_steps() {
    local options host port page listen=127.0.0.1
    options=$(sed -n 's/^OPTIONS=//p' /etc/vgg-edge/serve.conf | tail -1)
    port=8080
    [[ $options =~ --port[\ =]([0-9]+) ]] && port=${BASH_REMATCH[1]}
    host=$(hostname -I 2>/dev/null | cut -d ' ' -f 1) || true
    host=${host:-$(hostname)}
    [[ $options =~ --host[\ =]([^\ \"\']+) ]] && listen=${BASH_REMATCH[1]}
    case $listen in
        127.* | localhost | ::1) page="http://$listen:$port on this machine only" ;;
        0.0.0.0 | ::) page="http://$host:$port on your network" ;;
        *) page="http://$listen:$port" ;;
    esac
    cat <<STEPS

vgg-edge.service is running. The page is at $page.

Next steps:
  1. Show the token that the page asks for:
       sudo cat /etc/vgg-edge/token
  2. Add a camera and open the page to your network (the file has example lines):
       sudo nano /etc/vgg-edge/serve.conf
       sudo systemctl restart vgg-edge        # then open http://$host:$port
  3. Run your own model, a folder or a file (the running service loads it):
       sudo cp -r models/NAME /var/lib/vgg-edge/models/
  4. Show the log, which names the running model:
       journalctl -u vgg-edge -f
STEPS
}

remove() {
    local left
    if [ -e /etc/systemd/system/vgg-edge.service ]; then
        run systemctl stop vgg-edge.service
        run systemctl disable vgg-edge.service
    fi
    run rm -rf /etc/systemd/system/vgg-edge.service /opt/vgg-edge /etc/vgg-edge /var/cache/vgg-edge
    run systemctl daemon-reload
    if [ -e /var/lib/vgg-edge ]; then
        echo "kept: /var/lib/vgg-edge with models and pictures; sudo rm -r /var/lib/vgg-edge removes it"
    fi
    getent passwd vgg-edge >/dev/null || return 0
    # The next user that is created may get the same number, and with it the files that are left.
    left=$(file_of_user) || true
    if [ -n "$left" ]; then
        echo "kept: the user vgg-edge, who owns $left; without such files, --uninstall removes the user"
    else
        run userdel vgg-edge
    fi
}

# Prints a file that the user of the service owns, outside of the folders that --uninstall removes.
file_of_user() {
    # /var may be a separate file system.
    find / /var /var/lib /var/lib/vgg-edge -xdev \( -path /opt/vgg-edge -o -path /var/cache/vgg-edge -o -path /proc -o -path /sys \) -prune \
        -o -user vgg-edge -print -quit 2>/dev/null
}

main "$@"
