import { keepsPassing } from '../support/cluster/index.ts';

// A few specs of each kind on the newer containerd, which has some that the older one skips. test/cluster/critest runs the rest.

const CONTAINER = 'Container runtime should support';
const SECURITY = 'Security Context';
const STREAMING = 'Streaming runtime should support streaming interfaces runtime should support';

keepsPassing('2', [
  "Container Mount Propagation runtime should support mount propagation mount with 'rslave' should support propagation from host to container",
  'Container Mount Readonly runtime should support readonly mounts should reject a recursive readonly mount with ReadOnly: false',
  'Container Mount Readonly runtime should support readonly mounts should support recursive readonly mounts',
  'Container OOM runtime should output OOMKilled reason should terminate with exitCode 137 and reason OOMKilled',
  `${CONTAINER} adding volume and device runtime should support starting container with volume [Conformance]`,
  `${CONTAINER} basic operations on container runtime should support execSync [Conformance]`,
  `${CONTAINER} basic operations on container runtime should support execSync with timeout [Conformance]`,
  `${CONTAINER} basic operations on container runtime should support listing stats for started containers when filter is nil [Conformance]`,
  `${CONTAINER} basic operations on container runtime should support removing running container [Conformance]`,
  `${CONTAINER} basic operations on container runtime should support stopping container [Conformance]`,
  `${CONTAINER} log runtime should support reopening container log [Conformance]`,
  'Idempotence StopContainer should not return an error if not found',
  'Idempotence StopPodSandbox should not return an error if not found',
  'Image Manager public image with tag should be pulled and removed [Conformance]',
  'Multiple Containers [Conformance] when running multiple containers in a pod should support network',
  'Networking runtime should support networking runtime should support DNS config [Conformance]',
  'Networking runtime should support networking runtime should support port mapping with host port and container port [Conformance]',
  'Networking runtime should support networking runtime should support set hostname [Conformance]',
  'PodSandbox runtime should support basic operations on PodSandbox runtime should support running PodSandbox [Conformance]',
  'PodSandbox runtime should support sysctls should support safe sysctls',
  'Runtime info runtime should support returning runtime info runtime should return runtime conditions [Conformance]',
  `${SECURITY} NamespaceOption runtime should support ContainerPID`,
  `${SECURITY} NamespaceOption runtime should support HostNetwork is false`,
  `${SECURITY} NamespaceOption runtime should support PodPID`,
  `${SECURITY} NoNewPrivs should not allow privilege escalation when true`,
  `${SECURITY} SeccompProfilePath should support seccomp localhost profile on the container`,
  `${SECURITY} SupplementalGroupsPolicy when SupplementalGroupsPolicy=Strict even if the container's primary UID belongs to some groups in the image, runtime should not add SupplementalGroups to them`,
  `${SECURITY} bucket runtime should support MaskedPaths`,
  `${SECURITY} bucket runtime should support Privileged is true`,
  `${SECURITY} bucket runtime should support ReadonlyPaths`,
  `${SECURITY} bucket runtime should support RunAsUserName`,
  `${SECURITY} bucket runtime should support adding capability`,
  `${SECURITY} bucket runtime should support that ReadOnlyRootfs is true`,
  `${STREAMING} attach [Conformance]`,
  `${STREAMING} exec with tty=false and stdin=false [Conformance]`,
  `${STREAMING} exec with tty=true and stdin=true [Conformance]`,
  `${STREAMING} portforward [Conformance]`,
]);
