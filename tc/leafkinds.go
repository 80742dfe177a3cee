//go:build linux

package tc

// LeafKinds says which of [Kinds] this kernel has and which it lacks. Asking
// loads modules, as using them would, and needs CAP_NET_ADMIN.
func (d *Device) LeafKinds() (have, lacking []string, err error) {
	kinds, err := d.probe()
	if err != nil {
		return nil, nil, err
	}
	for _, k := range disciplines {
		if kinds[k] {
			have = append(have, k.Name)
		} else {
			lacking = append(lacking, k.Name)
		}
	}
	return have, lacking, nil
}
