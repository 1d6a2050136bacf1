import { chmodSync, copyFileSync, cpSync, linkSync, mkdirSync, readdirSync, rmSync, symlinkSync } from 'node:fs';
import { basename, join } from 'node:path';
import { ImageLayout, must, type RunConfig } from './layout.ts';
import { SOURCES, unpacked } from './pieces.ts';

// Stand-ins for the images that critest 1.36 names: what its specs look at is in them, and no registry is needed.
// docs/testing.md says where these differ from the real ones.

const E2E = 'registry.k8s.io/e2e-test-images';
const CRI_TOOLS = 'gcr.io/k8s-staging-cri-tools';
const LIBRARIES = 'lib/x86_64-linux-gnu';
export const BUSYBOX = `${E2E}/busybox:1.29-2`;
export const HTTPD = `${E2E}/httpd:2.4.39-4`;
export const NGINX = `${E2E}/nginx:1.14-2`;
/** Asks for SIGUSR1 to be stopped. */
export const STOPPED_BY_USR1 = `${CRI_TOOLS}/stop-signal:latest`;
const PAUSE_VERSIONS = ['3.6', '3.9', '3.10', '3.10.1', '3.10.2'];

/** Writes an OCI layout with all images into `layout`; `work` is an empty directory for their files. */
export function buildImages(layout: string, work: string): void {
  const images = new ImageLayout(layout);
  /** A layer of the committed files and what `fill` adds. */
  const layer = (name: string, fill: (root: string) => void = () => {}) => {
    const root = join(work, name);
    mkdirSync(root);
    cpSync(join(SOURCES, 'images', name), root, { recursive: true, force: true });
    // Whatever the checkout's umask was.
    must('chmod', '-R', 'u+rwX,go+rX,go-w', root);
    fill(root);
    return images.addLayer(root);
  };
  const empty = (name: string, fill: (root: string) => void) => {
    mkdirSync(join(work, name));
    fill(join(work, name));
    return images.addLayer(join(work, name));
  };
  const compiled = (name: string, mode: number) =>
    empty(name, (root) => {
      must('gcc', '-O2', '-static', '-s', '-o', join(root, name), join(SOURCES, 'images', `${name}.c`));
      chmodSync(join(root, name), mode);
    });

  const pause = compiled('pause', 0o755);
  for (const version of PAUSE_VERSIONS) {
    const names = [`registry.k8s.io/pause:${version}`];
    // A spec pulls one image from two registries. It counts the names of an image's id: versions differ by a label.
    if (version === '3.9') names.push(`k8s.gcr.io/pause:${version}`);
    images.addImage(names, [pause], { Entrypoint: ['/pause'], User: '65535:65535', Labels: { version } });
  }
  images.addImage([`${E2E}/nonewprivs:1.3`], [compiled('nonewprivs', 0o4755)], { Entrypoint: ['/nonewprivs'] });

  const busybox = layer('busybox', fillBusybox);
  const shell: RunConfig = { Cmd: ['sh'] };
  images.addImage([BUSYBOX, 'docker.io/library/busybox:latest'], [busybox], shell);
  images.addImage([STOPPED_BY_USR1], [busybox], { ...shell, StopSignal: 'SIGUSR1' });
  images.addImage([HTTPD], [busybox, layer('httpd')], { Cmd: ['httpd-foreground'] });

  const nginx = layer('nginx', fillNginx);
  const serve: RunConfig = { Cmd: ['nginx', '-g', 'daemon off;'], ExposedPorts: { '80/tcp': {} } };
  images.addImage([NGINX], [busybox, nginx], serve);
  images.addImage([`${CRI_TOOLS}/hostnet-nginx-amd64:latest`], [busybox, nginx, layer('hostnet-nginx')], serve);

  // Differing images with nothing in them, and one image with three tags.
  const distinct: [string, string[]][] = [
    ...['1', '2', '3', 'latest'].map((name): [string, string[]] => [name, [`test-image-${name}:latest`]]),
    ...['test', 'all'].map((tag): [string, string[]] => [`tag-${tag}`, [`test-image-tag:${tag}`]]),
    ['tags', ['1', '2', '3'].map((tag) => `test-image-tags:${tag}`)],
  ];
  for (const [version, names] of distinct)
    images.addImage(
      names.map((name) => `${CRI_TOOLS}/${name}`),
      [busybox],
      { ...shell, Labels: { version } },
    );

  const users: [string, string][] = [
    ['uid', '1002'],
    ['username', 'www-data'],
    ['uid-group', '1003:1004'],
    ['username-group', 'www-data:1004'],
  ];
  for (const [name, User] of users)
    images.addImage([`${CRI_TOOLS}/test-image-user-${name}:latest`], [busybox], { ...shell, User });
  const grouped = [busybox, layer('predefined-group')];
  images.addImage([`${CRI_TOOLS}/test-image-predefined-group:latest`], grouped, { ...shell, User: '1000' });
  images.finish();
  rmSync(work, { recursive: true });
}

function fillBusybox(root: string): void {
  for (const name of ['sbin', 'home', 'root', 'usr/bin', 'usr/sbin', 'var/www', 'dev', 'proc', 'sys', 'run', 'lib64'])
    mkdirSync(join(root, name), { recursive: true });
  mkdirSync(join(root, 'tmp'));
  chmodSync(join(root, 'tmp'), 0o1777);
  symlinkSync('../run', join(root, 'var/run'));
  const program = join(root, 'bin/busybox');
  copyFileSync(unpacked('busybox-static', 'bin/busybox'), program);
  const own = new Set(['busybox', 'sh', ...readdirSync(join(SOURCES, 'images/busybox/bin'))]);
  // Hard links: a spec masks /bin/ls, which through a symbolic link would mask all of busybox.
  for (const applet of must(program, '--list').trim().split('\n'))
    if (!own.has(applet)) linkSync(program, join(root, 'bin', applet));
  // The shell of the static busybox runs its applets itself, without a look at /bin. That spec wants ls to fail.
  copyFileSync(unpacked('busybox', 'bin/busybox'), join(root, 'bin/sh'));
  mkdirSync(join(root, LIBRARIES), { recursive: true });
  copyFileSync(unpacked('libc6', `${LIBRARIES}/ld-linux-x86-64.so.2`), join(root, 'lib64/ld-linux-x86-64.so.2'));
  for (const library of ['libc.so.6', 'libresolv.so.2'])
    copyFileSync(unpacked('libc6', join(LIBRARIES, library)), join(root, LIBRARIES, library));
}

/** Debian's nginx: the specs look for its process title, its pid file and its logs. */
function fillNginx(root: string): void {
  for (const name of ['usr/sbin', LIBRARIES, 'var/log/nginx', 'var/cache/nginx', 'var/lib/nginx'])
    mkdirSync(join(root, name), { recursive: true });
  symlinkSync('/dev/stdout', join(root, 'var/log/nginx/access.log'));
  symlinkSync('/dev/stderr', join(root, 'var/log/nginx/error.log'));
  copyFileSync(unpacked('nginx', 'usr/sbin/nginx'), join(root, 'usr/sbin/nginx'));
  for (const library of [
    unpacked('libcrypt1', `${LIBRARIES}/libcrypt.so.1`),
    unpacked('zlib1g', `${LIBRARIES}/libz.so.1`),
    unpacked('libpcre2-8-0', `usr/${LIBRARIES}/libpcre2-8.so.0`),
    unpacked('libssl3', `usr/${LIBRARIES}/libssl.so.3`),
    unpacked('libssl3', `usr/${LIBRARIES}/libcrypto.so.3`),
  ])
    copyFileSync(library, join(root, LIBRARIES, basename(library)));
}
