import type { DiskPart } from '../../model/index.ts';

/**
 * A VMDK descriptor that shows files one after the other as one disk: QEMU has no other driver that concatenates. It is text;
 * every "extent" names a raw file and its length in sectors (VMware, Virtual Disk Format 5.0). QEMU reads zeroes behind the
 * end of a file that fills its last sector only in part, skips extents that are not "RW" (the node is opened read-only
 * nevertheless) and takes paths of 511 bytes. The paths have passed the driver's allow-list: no quote, no newline.
 */
export function vmdkDescriptor(paths: readonly string[], parts: readonly DiskPart[]): string {
  const extents = paths.map((path, at) => `RW ${(parts[at] as DiskPart).sectors} FLAT "${path}" 0`);
  return [
    '# Disk DescriptorFile',
    'version=1',
    'CID=fffffffe',
    'parentCID=ffffffff',
    'createType="twoGbMaxExtentFlat"',
    '',
    '# Extent description',
    ...extents,
    '',
    '# The Disk Data Base',
    '#DDB',
    '',
  ].join('\n');
}
