package rig

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/containerd/containerd/api/services/content/v1"
	"github.com/containerd/containerd/api/services/images/v1"
	"github.com/containerd/containerd/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// image is that of all containers, the pause of a sandbox too: busybox and links to it.
const image = "rig.invalid/busybox:1"

// static says whether a program needs no libraries.
func static(path string) bool {
	f, err := elf.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return false
		}
	}
	return true
}

// blob is a part of an image. Its fields are those of an OCI descriptor.
type blob struct {
	MediaType string `json:"mediaType"`
	Digest    string `json:"digest"`
	Size      int64  `json:"size"`
	data      []byte
}

func newBlob(mediaType string, data []byte) blob {
	return blob{mediaType, fmt.Sprintf("sha256:%x", sha256.Sum256(data)), int64(len(data)), data}
}

// file is one of an image.
type file struct {
	tar.Header
	data []byte
}

// program is one of this machine, as a file of an image.
func program(path, as string) (file, error) {
	b, err := os.ReadFile(path)
	return file{tar.Header{Typeflag: tar.TypeReg, Name: as, Mode: 0o755}, b}, err
}

// busyboxFiles are those of the image of busybox.
func busyboxFiles(busybox string) ([]file, error) {
	var all []file
	for _, d := range []string{"bin", "etc", "proc", "sys", "dev", "tmp"} {
		all = append(all, file{Header: tar.Header{Typeflag: tar.TypeDir, Name: d + "/", Mode: 0o755}})
	}
	all = append(all, file{tar.Header{Typeflag: tar.TypeReg, Name: "etc/passwd", Mode: 0o644}, []byte("root:x:0:0::/:/bin/sh\n")})
	for _, name := range strings.Fields("sh sleep nc yes head true") {
		all = append(all, file{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + name, Linkname: "busybox", Mode: 0o777}})
	}
	p, err := program(busybox, "bin/busybox")
	return append(all, p), err
}

// layer is the file system of a container.
func layer(files []file) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		f.Size = int64(len(f.data))
		if err := w.WriteHeader(&f.Header); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.data); err != nil {
			return nil, err
		}
	}
	err := w.Close()
	return b.Bytes(), err
}

// Image has containerd know an image of programs of this machine, by where they are in it. It has
// nothing else, as one from scratch.
func (r *Rig) Image(name, entrypoint string, programs map[string]string) {
	r.t.Helper()
	var files []file
	for as, path := range programs {
		f, err := program(path, strings.TrimPrefix(as, "/"))
		if err != nil {
			r.t.Fatal(err)
		}
		files = append(files, f)
	}
	ctx, cancel := r.context()
	defer cancel()
	if err := load(ctx, r.conn, name, files, map[string]any{"Entrypoint": []string{entrypoint}, "Env": []string{"PATH=/usr/bin"}}); err != nil {
		r.t.Fatal(err)
	}
}

// load has containerd know an image, without a registry. run is what its containers do unless
// they are told otherwise.
func load(ctx context.Context, c grpc.ClientConnInterface, name string, files []file, run map[string]any) error {
	data, err := layer(files)
	if err != nil {
		return err
	}
	l := newBlob("application/vnd.oci.image.layer.v1.tar", data)
	b, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux", "config": run,
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{l.Digest}},
	})
	if err != nil {
		return err
	}
	config := newBlob("application/vnd.oci.image.config.v1+json", b)
	const ofManifest = "application/vnd.oci.image.manifest.v1+json"
	b, err = json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": ofManifest, "config": config, "layers": []blob{l}})
	if err != nil {
		return err
	}
	manifest := newBlob(ofManifest, b)

	ctx = metadata.AppendToOutgoingContext(ctx, "containerd-namespace", "k8s.io")
	for _, b := range []blob{l, config, manifest} {
		if err := write(ctx, content.NewContentClient(c), b); err != nil {
			return fmt.Errorf("image: %w", err)
		}
	}
	_, err = images.NewImagesClient(c).Create(ctx, &images.CreateImageRequest{Image: &images.Image{
		Name:   name,
		Target: &types.Descriptor{MediaType: manifest.MediaType, Digest: manifest.Digest, Size: manifest.Size},
		Labels: map[string]string{"io.cri-containerd.image": "managed", "io.cri-containerd.pinned": "pinned"},
	}})
	return err
}

// write writes a blob, in parts: a message of gRPC is bounded.
func write(ctx context.Context, c content.ContentClient, b blob) error {
	w, err := c.Write(ctx)
	if err != nil {
		return err
	}
	const most = 4 << 20
	for at := 0; ; at += most {
		q := &content.WriteContentRequest{
			Action: content.WriteAction_WRITE, Ref: b.Digest, Total: b.Size, Offset: int64(at), Data: b.data[at:min(len(b.data), at+most)],
		}
		if at+most >= len(b.data) {
			q.Action, q.Expected = content.WriteAction_COMMIT, b.Digest
			// or it goes when containerd collects what nothing names
			q.Labels = map[string]string{"containerd.io/gc.root": time.Now().UTC().Format(time.RFC3339)}
		}
		if err := w.Send(q); err != nil && err != io.EOF { // of that Recv has the reason
			return err
		}
		if _, err := w.Recv(); err != nil || q.Action == content.WriteAction_COMMIT {
			return err
		}
	}
}
