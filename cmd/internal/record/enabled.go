package record

import (
	"os"
	"path/filepath"
)

// Enabled is what became of an enabled policy, as the agent tells that applies it.
type Enabled struct {
	Policy string `json:"policy"`        // its file
	Why    string `json:"why,omitempty"` // it is not in force as it is written; empty: it is
}

func (s *Store) enabledFile() string { return filepath.Join(s.Dir, "enabled") }

// Enabled are the policies that an agent applies; none where no agent does.
func (s *Store) Enabled() (all []Enabled, err error) {
	_, err = s.value(s.enabledFile(), &all)
	return all, err
}

// SetEnabled saves them, or forgets them where there are none. The agent alone does.
func (s *Store) SetEnabled(all []Enabled) error {
	if len(all) == 0 {
		return UnlessGone(os.Remove(s.enabledFile()))
	}
	_, err := s.write(s.enabledFile(), all)
	return s.room(err)
}
