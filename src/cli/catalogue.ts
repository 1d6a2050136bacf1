import type { ErrorCode } from '../base/index.ts';

interface Explanation {
  meaning: string;
  /** Empty: nothing. */
  remedy: string;
}

/** What every error code says to a person; docs/errors.md is made from it. */
export const CATALOGUE: Readonly<Record<ErrorCode, Explanation>> = {
  INVALID_ARGUMENT: {
    meaning: 'An option or a request is malformed; all problems are listed together',
    remedy: 'correct what the message names',
  },
  UNSUPPORTED_FLAG: {
    meaning: 'A docker flag that this program does not have; the reason stands beside it',
    remedy: 'see docs/cli.md',
  },
  NOT_FOUND: {
    meaning: 'No such container, image, volume or path',
    remedy: '`kata ps -a`, `kata images`',
  },
  ALREADY_EXISTS: {
    meaning: 'The name is taken',
    remedy: 'choose another name or remove the holder',
  },
  CONFLICT: {
    meaning: 'The object is in a state that forbids the call, such as removing a running container',
    remedy: 'stop it first, or `-f`',
  },
  NOT_RUNNING: {
    meaning: 'The call needs a running container',
    remedy: '`kata start`',
  },
  PERMISSION_DENIED: {
    meaning: 'The caller is not root, or a call belongs to the keeper alone',
    remedy: 'run as root',
  },
  IMAGE_INVALID: {
    meaning: 'An archive, layout, manifest or layer is broken or tries to leave its root; the entry is named',
    remedy: 'build the image anew',
  },
  IMAGE_DIGEST_MISMATCH: {
    meaning: "A blob's bytes are not those of its digest",
    remedy: 'fetch the image again',
  },
  IMAGE_PLATFORM: {
    meaning: 'The image is for another operating system or architecture',
    remedy: 'load one for linux/amd64',
  },
  IMAGE_IN_USE: {
    meaning: 'A container uses the image',
    remedy: 'remove the container first',
  },
  REGISTRY_DENIED: {
    meaning: 'A registry wants a login, or does not take or allow the one that there is; its words are the evidence',
    remedy: '`kata login`',
  },
  REGISTRY_UNREACHABLE: {
    meaning: 'A registry cannot be reached, breaks off, or is overloaded',
    remedy: 'try again: what was fetched is kept',
  },
  REGISTRY_UNTRUSTED: {
    meaning: 'The certificate of a registry is not trusted, or it speaks plain http and is not on this host',
    remedy: 'docs/registries.md, "Trust"',
  },
  REGISTRY_PROTOCOL: {
    meaning: 'A registry answers what it must not: redirects without end, no JSON, another part than was asked for',
    remedy: 'check its name, and what stands before it',
  },
  NETWORK_UNAVAILABLE: {
    meaning: 'The host cannot make a network for the sandbox: no nft, no /dev/net/tun, or a kernel that refuses',
    remedy: 'do what the message says (`kata check` looks, too), or `--network none`',
  },
  PORT_IN_USE: {
    meaning: 'Somebody listens on the port of the host that `-p` names, another container perhaps',
    remedy: 'choose another port, or end who has it: `kata ps`, `ss -lp`',
  },
  DISK_FULL: {
    meaning: 'The file system of the state root is full',
    remedy: 'free space, or move `--root`',
  },
  RESOURCE_EXHAUSTED: {
    meaning: 'The host cannot give the memory, processors or slots asked for; the numbers stand in the message',
    remedy: 'ask for less',
  },
  SECRET_MISSING: {
    meaning:
      'A secret of the container is nowhere any more: values from the environment end with the engine that got them',
    remedy: '`kata start --secret NAME CONTAINER` gives it again; a secret with `src=FILE` is read at every start',
  },
  SETUP_INCOMPLETE: {
    meaning: "A piece of the installation is missing or its build failed; the tool's last lines are the evidence",
    remedy: '`kata setup`',
  },
  GUEST_IMAGE_INVALID: {
    meaning: "The guest's kernel or initrd is missing or does not match its manifest",
    remedy: '`kata guest build`',
  },
  VMM_START_FAILED: {
    meaning: 'The VMM could not be started',
    remedy: '`kata check`',
  },
  VMM_EXITED: {
    meaning: 'The VMM ended while it was needed',
    remedy: "read the evidence: its stderr and the guest's console",
  },
  HELPER_EXITED: {
    meaning: 'virtiofsd or the vsock device ended',
    remedy: 'read the evidence: its stderr',
  },
  GUEST_PANIC: {
    meaning: "The guest's kernel panicked",
    remedy: 'read the evidence: the console',
  },
  GUEST_BOOT_TIMEOUT: {
    meaning: 'The guest did not report in time',
    remedy: 'read the evidence: the console; the host may be overloaded',
  },
  AGENT_UNAVAILABLE: {
    meaning: 'The guest agent does not answer',
    remedy: "`kata logs`, the sandbox's console log",
  },
  AGENT_ERROR: {
    meaning: 'The guest agent refused or failed a step',
    remedy: 'read the evidence',
  },
  KEEPER_UNAVAILABLE: {
    meaning: "The sandbox's keeper does not answer",
    remedy: 'the engine cleans up; start the container again',
  },
  ENGINE_UNAVAILABLE: {
    meaning: 'katad does not run and could not be started',
    remedy: 'read the log that the message names',
  },
  COMMAND_NOT_FOUND: {
    meaning: 'The command does not exist in the container',
    remedy: 'correct the command or PATH',
  },
  COMMAND_NOT_EXECUTABLE: {
    meaning: 'The command exists and cannot be executed',
    remedy: 'check its mode, interpreter and architecture',
  },
  DEADLINE_EXCEEDED: {
    meaning: 'A bound passed',
    remedy: 'the phase says which',
  },
  CANCELLED: {
    meaning: 'The caller gave up',
    remedy: '',
  },
  STATE_CORRUPT: {
    meaning: 'A state file cannot be read',
    remedy: '`kata rm -f` the container it belongs to',
  },
  UNIMPLEMENTED: {
    meaning: 'The other side does not know the call',
    remedy: 'update it',
  },
  INTERNAL: {
    meaning: 'A defect of this program',
    remedy: 'report it with the evidence',
  },
};
