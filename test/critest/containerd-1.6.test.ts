import { keepsPassing } from '../support/cluster/index.ts';

// The whole of critest on the older containerd.
keepsPassing('1.6');
