"""STL, OFF, 3MF and DAE files: colors, axes, and what is missing."""

import zipfile

import numpy as np
import PIL.Image
import pytest
import trimesh

from threedim.rendering import dae
from threedim.rendering.meshes import load_mesh
from threedim.rendering.surfaces import DEFAULT_GRAY, BadMeshError, srgb_to_linear

BOX = trimesh.creation.box([1, 2, 4])
GRAY = srgb_to_linear(DEFAULT_GRAY)
DAE = """<?xml version="1.0" encoding="utf-8"?>
<COLLADA xmlns="http://www.collada.org/2005/11/COLLADASchema" version="1.4.1"><asset><up_axis>{up}</up_axis></asset>
<library_images><image id="i"><init_from>my%20map.png</init_from></image></library_images>
<library_effects><effect id="e"><profile_COMMON>
<newparam sid="s"><surface type="2D"><init_from>i</init_from></surface></newparam>
<newparam sid="p"><sampler2D><source>s</source></sampler2D></newparam>
<technique sid="c"><lambert>{material}</lambert></technique></profile_COMMON></effect></library_effects>
<library_materials><material id="m"><instance_effect url="#e"/></material></library_materials>
<library_geometries><geometry id="g"><mesh>
<source id="v"><float_array id="va" count="18">2 0 0 2 1 0 1 1 0 1 2 0 0 2 0 0 0 0</float_array>
<technique_common><accessor source="#va" count="6" stride="3"><param name="X" type="float"/>
<param name="Y" type="float"/><param name="Z" type="float"/></accessor></technique_common></source>
<source id="u"><float_array id="ua" count="12">1 0 1 .5 .5 .5 .5 1 0 1 0 0</float_array>
<technique_common><accessor source="#ua" count="6" stride="2"><param name="S" type="float"/>
<param name="T" type="float"/></accessor></technique_common></source>
<vertices id="vv"><input semantic="POSITION" source="#v"/></vertices>
<polylist count="1" material="mm"><input semantic="VERTEX" source="#vv" offset="0"/>
<input semantic="TEXCOORD" source="#u" offset="1" set="0"/><vcount>6</vcount><p>0 0 1 1 2 2 3 3 4 4 5 5</p></polylist>
</mesh></geometry></library_geometries>
<library_visual_scenes><visual_scene id="vs"><node><matrix>1 0 0 0 0 1 0 0 0 0 1 7 0 0 0 1</matrix>
<instance_geometry url="#g"><bind_material><technique_common><instance_material symbol="mm" target="#m"/>
</technique_common></bind_material></instance_geometry></node></visual_scene></library_visual_scenes>
<scene><instance_visual_scene url="#vs"/></scene></COLLADA>"""


@pytest.mark.parametrize("suffix", ["stl", "off", "3mf"])
def test_z_is_up_and_surfaces_are_gray(tmp_path, suffix):
    BOX.export(tmp_path / f"box.{suffix}")
    geometry = load_mesh(tmp_path / f"box.{suffix}")
    size = np.ptp(geometry.triangles, axis=(0, 1))
    np.testing.assert_allclose(size / size[0], [1, 2, 4], rtol=1e-6)
    np.testing.assert_allclose(geometry.colors[..., :3], np.broadcast_to(GRAY, (12, 3, 3)), rtol=1e-6)
    assert geometry.warnings == ()


def test_what_trimesh_logs_is_not_shown(tmp_path, caplog):
    lines = BOX.export(file_type="stl_ascii").splitlines()
    (tmp_path / "box.stl").write_text("\n".join(line.replace("facet normal", "facet normal \0", 1) for line in lines))
    assert len(load_mesh(tmp_path / "box.stl").triangles) == 12
    assert not caplog.records


@pytest.mark.parametrize(("header", "bits"), [(b"COLOR=", 0b0_00000_00000_11111), (b"", 0b1_11111_00000_00000)])
def test_colors_of_stl(tmp_path, header, bits):
    data = bytearray(BOX.export(file_type="stl"))
    data[: len(header)] = header
    for face in range(12):
        data[84 + 50 * face + 48 : 84 + 50 * face + 50] = (bits if face else bits ^ 1 << 15).to_bytes(2, "little")
    (tmp_path / "box.stl").write_bytes(data)
    colors = load_mesh(tmp_path / "box.stl").colors
    np.testing.assert_array_equal(colors[1:, 0], [[1, 0, 0, 1]] * 11)
    np.testing.assert_allclose(colors[0, 0], [*GRAY, 1], rtol=1e-6)


def test_colors_of_off(tmp_path):
    path = tmp_path / "a.off"
    for header, red, green in (("COFF\n3 1 0", "255 0 0", "0 255 0 255"), ("COFF 3 1 0", "1.0 0 0 1", "0 1 0 1")):
        path.write_text(f"{header}\n# corners\n0 0 0 {red}\n1 0 0 {green}\n0 1 0 {green}\n3 0 1 2\n")
        colors = load_mesh(path).colors
        np.testing.assert_array_equal(colors[0], [[1, 0, 0, 1], [0, 1, 0, 1], [0, 1, 0, 1]])
    path.write_text("# by hand\nNOFF3 2 0\n0 0 0 0 0 1\n1 0 0 0 0 1\n0 1 0 0 0 1\n3 0 1 2 255 0 0\n3 0 1 2\n")
    geometry = load_mesh(path)
    np.testing.assert_allclose(geometry.colors[:, 0], [[1, 0, 0, 1], [*GRAY, 1]], rtol=1e-6)
    np.testing.assert_array_equal(geometry.normals, np.broadcast_to([0, 0, 1], (2, 3, 3)))
    assert geometry.warnings == ()
    for text, match in (
        ("OFF\n3 2 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n", "is shorter than it says"),
        ("OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 3\n", "refers to a vertex that does not exist"),
        ("OFF BINARY\n", "does not begin with OFF"),
        ("OFF\nmany\n", r"cannot be read as OFF \(ValueError"),
    ):
        path.write_text(text)
        with pytest.raises(BadMeshError, match=match):
            load_mesh(path)


def test_colors_of_3mf_become_a_warning(tmp_path):
    BOX.export(tmp_path / "box.3mf")
    with zipfile.ZipFile(tmp_path / "box.3mf", "a") as archive:
        archive.writestr("3D/more.model", '<m:colorgroup id="1"/>')
    assert [warning.split(": ")[1] for warning in load_mesh(tmp_path / "box.3mf").warnings] == [
        "colors and textures of 3MF files are not read; shown gray"
    ]


@pytest.mark.parametrize(("up", "normal"), [("Y_UP", [0, 0, 1]), ("Z_UP", [0, 1, 0]), ("X_UP", [0, 0, 1])])
def test_dae_says_what_is_up_and_concave_faces_are_cut(tmp_path, up, normal):
    (tmp_path / "a.dae").write_text(DAE.format(up=up, material="<diffuse><color>1 0 0 1</color></diffuse>"))
    (surface,), warnings = dae.read(tmp_path / "a.dae")
    a, b, c = np.moveaxis(surface.triangles, 1, 0)
    np.testing.assert_allclose((np.cross(b - a, c - a) / 2).sum(axis=0), 3 * np.array(normal))
    np.testing.assert_allclose(surface.triangles @ normal, 7)
    np.testing.assert_array_equal(surface.colors[0, 0], [1, 0, 0, 1])
    assert warnings == []


def test_materials_of_dae(tmp_path):
    (tmp_path / "a.dae").write_text(
        DAE.format(up="Y_UP", material='<diffuse><texture texture="p" texcoord="UV"/></diffuse>')
    )
    (surface,), warnings = dae.read(tmp_path / "a.dae")
    assert surface.image is None
    np.testing.assert_allclose(surface.colors[0, 0], [*GRAY, 1])
    assert warnings == [f"{tmp_path / 'a.dae'}: texture my%20map.png is missing"]
    PIL.Image.fromarray(np.uint8([[[255, 0, 0]]])).save(tmp_path / "my map.png")
    (surface,), warnings = dae.read(tmp_path / "a.dae")
    assert surface.image.tolist() == [[[255, 0, 0, 255]]]
    np.testing.assert_allclose(surface.uv, surface.triangles[..., :2] / 2)
    assert warnings == []
    for number, opacity in ((0.25, 0.25), (0, 1)):
        material = "<diffuse><color>1 0 0 1</color></diffuse><transparent><color>1 1 1 1</color></transparent>"
        material += f"<transparency><float>{number}</float></transparency>"
        (tmp_path / "a.dae").write_text(DAE.format(up="Y_UP", material=material))
        (surface,), warnings = dae.read(tmp_path / "a.dae")
        np.testing.assert_allclose(surface.colors[0, 0], [1, 0, 0, opacity])
        assert (surface.alpha_cutoff, len(warnings)) == ((np.inf, 0) if number else (0, 1))
